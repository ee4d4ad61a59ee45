"""Reductions of a matrix-free curvature to a few eigenpairs."""

from jax_core.lowrank.block_lanczos import block_lanczos
from jax_core.lowrank.gram import gram
from jax_core.lowrank.lanczos import lanczos
from jax_core.lowrank.lobpcg import lobpcg
from jax_core.lowrank.nystrom import nystrom

__all__ = ["block_lanczos", "gram", "lanczos", "lobpcg", "nystrom"]
