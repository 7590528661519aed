"""What running out of memory looks like."""

import jax


class OutOfMemoryError(MemoryError):
    """A trial needed more memory than the device or the machine has; the message says how much."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python or XLA found no memory; XLA's errors tell it only in their text."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
