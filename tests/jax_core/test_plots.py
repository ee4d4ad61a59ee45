"""What the figures show, read back from the Axes."""

import io

import jax.numpy as jnp
import numpy as np
import pytest

from jax_core.plots import (
    proportion_diagram,
    reliability_diagram,
    shift_diagram,
    spectrum_plot,
)

CONFIDENCES = jnp.asarray([0.0, 0.4, 0.6, 0.95])
ACCURACIES = jnp.asarray([0.0, 0.3, 0.7, 0.9])


@pytest.fixture(autouse=True)
def closed_figures():
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


def drawn(ax):
    """Renders the figure, as a layout that cannot be drawn warns only then."""
    ax.figure.savefig(io.BytesIO(), format="png")
    return ax


def test_reliability_bars_are_the_accuracies_of_bins_that_hold_samples():
    ax = drawn(reliability_diagram(bin_confidences=CONFIDENCES, bin_accuracies=ACCURACIES, num_bins=4))
    np.testing.assert_allclose([bar.get_height() for bar in ax.patches], ACCURACIES[1:])
    np.testing.assert_allclose([bar.get_x() for bar in ax.patches], [0.25, 0.5, 0.75])


def test_proportion_bars_are_the_proportions():
    ax = drawn(proportion_diagram(bin_proportions=jnp.asarray([0.1, 0.0, 0.9]), num_bins=3))
    np.testing.assert_allclose([bar.get_height() for bar in ax.patches], [0.1, 0.0, 0.9])
    assert {text.get_text() for text in ax.texts} >= {"10.0", "90.0", ""}


def test_spectrum_is_sorted_positive_and_logarithmic():
    ax = drawn(spectrum_plot(jnp.asarray([1.0, 100.0, 0.0, 10.0]), prior_precision=5.0))
    assert ax.get_yscale() == "log"
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [100, 10, 1])


def test_shift_separates_right_from_wrong():
    before, after = jnp.asarray([0.9, 0.8, 0.7]), jnp.asarray([0.85, 0.6, 0.69])
    ax = drawn(shift_diagram(before, after, jnp.asarray([True, False, True])))
    right, wrong = (np.asarray(points.get_offsets()) for points in ax.collections)
    np.testing.assert_allclose(right, [[0.9, 0.85], [0.7, 0.69]])
    np.testing.assert_allclose(wrong, [[0.8, 0.6]])


@pytest.mark.parametrize(
    "draw",
    [
        lambda **o: reliability_diagram(CONFIDENCES, ACCURACIES, 4, **o),
        lambda **o: proportion_diagram(CONFIDENCES, 4, **o),
        lambda **o: spectrum_plot(CONFIDENCES, **o),
        lambda **o: shift_diagram(CONFIDENCES, ACCURACIES, ACCURACIES > 0.5, **o),
    ],
)
def test_axes_given_are_drawn_on_labelled_and_titled(draw):
    import matplotlib.pyplot as plt

    ax = plt.figure().subplots()
    assert draw(ax=ax, title="a title") is ax
    assert ax.get_xlabel() and ax.get_ylabel() and ax.get_title() == "a title"


def test_number_of_bins_that_does_not_match_is_refused():
    with pytest.raises(ValueError, match=r"bin_proportions has shape \(4,\), num_bins=5"):
        proportion_diagram(CONFIDENCES, 5)
    with pytest.raises(ValueError, match="bin_accuracies"):
        reliability_diagram(CONFIDENCES, ACCURACIES, 5)


@pytest.mark.usefixtures("unchecked_annotations")
def test_shift_of_unequal_lengths_is_refused():
    with pytest.raises(ValueError, match=r"\(4,\), \(3,\)"):
        shift_diagram(CONFIDENCES, ACCURACIES[:3], ACCURACIES > 0)
