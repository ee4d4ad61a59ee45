"""Precision and curvature as values, in every structure."""

import pytest
import torch

from bridge.weight_matrix import PosteriorPrecision
from tests.bridge.small import CASES, COVERED, fitted

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.in_turns]


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


@pytest.mark.parametrize(("structure", "subset"), CASES, ids=str)
def test_laplace_torchs_forms_are_products_with_the_covariance(structure, subset):
    precision, n = precision_of(fitted(structure, subset)), len(COVERED[subset])
    matrix, rows = precision.to_matrix(), torch.randn(4, 2, n, dtype=torch.float64)
    covariance = torch.linalg.inv(matrix)
    torch.testing.assert_close(precision.bmm(rows), rows @ covariance)
    torch.testing.assert_close(precision.bmm(rows[0, 0], exponent=1), matrix @ rows[0, 0])
    torch.testing.assert_close(precision.inv_square_form(rows), rows @ covariance @ rows.mT)
    torch.testing.assert_close(precision.diag(), matrix.diagonal())
    torch.testing.assert_close(precision.diag(exponent=-1), covariance.diagonal())
    root = precision.bmm(torch.eye(n, dtype=torch.float64), exponent=-0.5)  # rows are columns of S
    torch.testing.assert_close(root.T @ root, covariance)


def test_a_curvature_has_the_same_forms():
    curvature = fitted("kron").H
    rows = torch.randn(2, 43, dtype=torch.float64)
    torch.testing.assert_close(curvature.bmm(rows), rows @ curvature.to_matrix())
    torch.testing.assert_close(curvature.diag(), curvature.to_matrix().diagonal())


@pytest.mark.parametrize("shape", [(42,), (43, 1), ()])
def test_vectors_of_another_length_are_refused(shape):
    with pytest.raises(ValueError, match="43 weights"):
        precision_of(fitted("kron")).bmm(torch.zeros(shape))


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
    with pytest.raises(ValueError, match=r"exponent=0\.5.*-0\.5, its root"):
        precision_of(fitted("kron")).bmm(torch.zeros(43), exponent=0.5)
