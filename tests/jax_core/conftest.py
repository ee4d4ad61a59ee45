"""What holds for every test of the core."""

import jax
import pytest


@pytest.fixture(autouse=True)
def strict_promotion(request):
    """The core never mixes dtypes silently: a float64 constant beside float32 weights would double every buffer."""
    mixed = request.node.get_closest_marker("mixed_dtypes")
    with jax.numpy_dtype_promotion("standard" if mixed else "strict"):
        yield
