"""How trainings fail: by diverging, or by running out of memory."""

import re
from typing import Any

import jax

from jdss._checks import count_not_finite


class TrainingDivergedError(ArithmeticError):
    """The training loss became NaN or infinite; the message says when."""


class OutOfMemoryError(MemoryError):
    """A trial needed more memory than the device or the machine has; the message says how much."""


def is_finite(tree: Any) -> bool:
    """Whether no value in any floating-point leaf is NaN or infinite."""
    return not any(count_not_finite(leaf) for leaf in jax.tree.leaves(tree))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python or XLA found no memory; XLA's errors tell it only in their text."""
    # The status code is that of GPUs; the CPU reports an internal error.
    of_xla = isinstance(error, jax.errors.JaxRuntimeError)
    found = of_xla and re.search("RESOURCE_EXHAUSTED|Out of memory", str(error))
    return isinstance(error, MemoryError) or bool(found)


def shortage(error: BaseException) -> str:
    """What there was no memory for, in one line: XLA adds a table of all that it holds."""
    found = re.search("Out of memory.*", str(error))
    return found.group() if found else [*str(error).splitlines(), repr(error)][0]
