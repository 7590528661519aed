"""What running out of memory looks like."""

import re

import jax


class OutOfMemoryError(MemoryError):
    """A trial needed more memory than the device or the machine has; the message says how much."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python or XLA found no memory; XLA's errors tell it only in their text."""
    if isinstance(error, MemoryError):
        return True
    # The status code is that of GPUs; the CPU reports an internal error.
    return isinstance(error, jax.errors.JaxRuntimeError) and bool(
        re.search("RESOURCE_EXHAUSTED|Out of memory", str(error))
    )


def shortage(error: BaseException) -> str:
    """What there was no memory for, in one line: XLA adds a table of all that it holds."""
    found = re.search("Out of memory.*", str(error))
    first, *_ = [*str(error).splitlines(), repr(error)]
    return found.group() if found else first
