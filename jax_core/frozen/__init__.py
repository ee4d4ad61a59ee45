"""What of a model no covered parameter reaches: run once for each batch, its features kept in place of the inputs."""

from jax_core.frozen.feature_passes import FeaturePasses
from jax_core.frozen.split import Head, Split, Trunk, split
from jax_core.frozen.trunk import features

__all__ = ["FeaturePasses", "Head", "Split", "Trunk", "features", "split"]
