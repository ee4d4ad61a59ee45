"""What `trace` raises: each says what was found, where, and what to do about it."""


class TraceError(RuntimeError):
    """The model cannot be carried over to JAX."""


class MissingLoweringError(TraceError, NotImplementedError):
    """The model uses an operator that has no JAX lowering."""


class MismatchError(TraceError):
    """The traced function does not give what torch gives."""
