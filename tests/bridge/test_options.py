"""Misspelt options name the nearest; values out of range name the option."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bridge import Laplace
from bridge.options import LinkName, check_generator, one_of, positive, spelled, unknown_option, whole


@spelled
def example(first, *, second=1, third=2):
    """Documented."""
    return first, second, third


@given(args=st.tuples(st.integers()), named=st.dictionaries(st.sampled_from(["second", "third"]), st.integers()))
def test_a_checked_function_gives_what_it_gave(args, named):
    assert example(*args, **named) == example.__wrapped__(*args, **named)
    assert example.__doc__ == "Documented." and example.__name__ == "example"


def test_a_misspelt_option_names_the_nearest_and_all():
    with pytest.raises(
        TypeError, match=r"example got an unexpected option 'secnod'. Did you mean 'second'\? There are f"
    ):
        example(1, secnod=2)
    assert "Did you mean" not in str(unknown_option("It", "zzz", ["self", "second"]))
    assert "self" not in str(unknown_option("It", "zzz", ["self", "second"]))


def test_a_function_that_takes_any_option_is_left_alone():
    assert spelled(lambda **options: options)(anything=1) == {"anything": 1}


@pytest.mark.parametrize(
    ("call", "nearest"),
    [
        (lambda la: Laplace(nn.Linear(2, 2), rnak=9), "rank"),
        (lambda la: Laplace(nn.Linear(2, 2), hesian_structure="full"), "hessian_structure"),
        (lambda la: Laplace(nn.Linear(2, 2), prior_prec=1.0), "prior_precision"),
        (lambda la: la.fit([], overide=False), "override"),
        (lambda la: la.fit([], num_samples=3), "num_total_samples"),
    ],
)
def test_the_surface_names_the_nearest(call, nearest):
    with pytest.raises(TypeError, match=f"Did you mean {nearest!r}"):
        call(Laplace(nn.Linear(2, 2)))


def test_options_of_laplace_torch_without_a_meaning_say_what_to_use():
    for name, remedy in (("damping", "Leave it out"), ("asdl_fisher_kwargs", "Choose curvature=")):
        with pytest.raises(TypeError, match=f"takes no {name}: .*{remedy}"):
            Laplace(nn.Linear(2, 2), **{name: True})


@pytest.mark.usefixtures("unchecked_annotations")
def test_values_out_of_range_name_the_option():
    for wrong in (0, -1, 1.0, True, "1", None):
        with pytest.raises(ValueError, match="n="):
            whole("n", wrong)
    for wrong in (0, -1.0, float("inf"), float("nan"), "1"):
        with pytest.raises(ValueError, match="x="):
            positive("x", wrong)
    with pytest.raises(ValueError, match=r"curvature='gnn'\. Choose one of 'ggn'"):
        Laplace(nn.Linear(2, 2), curvature="gnn")
    whole("n", 1), positive("x", 1e-9), one_of("link", "mc", LinkName)
    with pytest.raises(TypeError, match="a int"):
        check_generator(3)
    check_generator(None), check_generator(torch.Generator())
