"""Symmetric operators a posterior can be made of: dense, diagonal, identity plus low rank."""

from jax_core.operators.dense import Dense
from jax_core.operators.diagonal import Diagonal
from jax_core.operators.low_rank import LowRank
from jax_core.operators.protocol import Operator, logdet
from jax_core.operators.whiten import whiten

__all__ = ["Dense", "Diagonal", "LowRank", "Operator", "logdet", "whiten"]
