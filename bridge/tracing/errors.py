"""What `trace` raises: each says what was found, where, and what to do about it."""


class TraceError(RuntimeError):
    """The model cannot be carried over to JAX."""


class ForwardError(TraceError):
    """The model's own forward fails on the example."""


class MissingLoweringError(TraceError, NotImplementedError):
    """The model uses an operator that has no JAX lowering."""


class LoweringError(TraceError, NotImplementedError):
    """A lowering does not take what the model gives its operator."""


class OutOfRangeError(TraceError, IndexError):
    """An index is out of range, as torch says it too."""


class MismatchError(TraceError):
    """The traced function does not give what torch gives."""


class BatchSizeError(TraceError, ValueError):
    """The traced function is not the model on a batch of this size."""


def first_line(error: Exception) -> str:
    """Of what an error says; its kind, where that is nothing."""
    return (str(error).strip() or type(error).__name__).split("\n", 1)[0]
