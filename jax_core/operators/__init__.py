"""Symmetric operators a posterior can be made of: dense, diagonal, low rank, Kronecker, and sums and blocks of them."""

from jax_core.operators.addition import add
from jax_core.operators.block_diagonal import BlockDiagonal
from jax_core.operators.block_low_rank import BlockLowRank
from jax_core.operators.dense import Dense
from jax_core.operators.diagonal import Diagonal
from jax_core.operators.kronecker import Kronecker
from jax_core.operators.low_rank import LowRank
from jax_core.operators.projection import Projection
from jax_core.operators.protocol import Covariance, Operator, logdet
from jax_core.operators.rooted import Rooted
from jax_core.operators.row_blocks import RowBlocks
from jax_core.operators.spectral import Spectral
from jax_core.operators.symmetric import Symmetric
from jax_core.operators.whiten import whiten

__all__ = [
    "BlockDiagonal",
    "BlockLowRank",
    "Covariance",
    "Dense",
    "Diagonal",
    "Kronecker",
    "LowRank",
    "Operator",
    "Projection",
    "Rooted",
    "RowBlocks",
    "Spectral",
    "Symmetric",
    "add",
    "logdet",
    "whiten",
]
