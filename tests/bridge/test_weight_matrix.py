"""Precision and curvature as values, in every structure."""

import pytest
import torch

from bridge.weight_matrix import PosteriorPrecision
from tests.bridge.small import CASES, COVERED, fitted

pytestmark = pytest.mark.usefixtures("x64")


def precision_of(la):
    return PosteriorPrecision(la.order, la.mean.device, la.mean.dtype, la.posterior)


@pytest.mark.parametrize(("structure", "subset"), CASES, ids=str)
def test_products_and_the_diagonal_are_those_of_the_matrix(structure, subset):
    precision, n = precision_of(fitted(structure, subset)), len(COVERED[subset])
    matrix, columns = precision.to_matrix(), torch.randn(n, 3, dtype=torch.float64)
    assert precision.shape == matrix.shape == (n, n)
    torch.testing.assert_close(precision @ columns, matrix @ columns)
    torch.testing.assert_close(precision @ columns[:, 0], matrix @ columns[:, 0])
    torch.testing.assert_close(precision.diagonal(), matrix.diagonal())
    torch.testing.assert_close(precision.to_matrix(exponent=-1), torch.linalg.inv(matrix))
    torch.testing.assert_close(precision.logdet(), matrix.logdet())
    assert torch.equal(matrix, matrix.T) and torch.linalg.eigvalsh(matrix).min() > 0


def test_the_property_is_a_matrix_a_vector_or_a_value_by_structure():
    assert fitted("full").posterior_precision.shape == (43, 43)
    assert fitted("diag").posterior_precision.shape == (43,)
    assert isinstance(fitted("kron").posterior_precision, PosteriorPrecision)


@pytest.mark.parametrize("shape", [(42,), (3, 43), (43, 1, 1), ()])
def test_a_product_with_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"give \(43,\)"):
        precision_of(fitted("kron")) @ torch.zeros(shape)


def test_another_power_is_refused():
    with pytest.raises(ValueError, match=r"exponent=0\.5"):
        precision_of(fitted("kron")).to_matrix(exponent=0.5)
