"""What a training that diverges looks like."""

from typing import Any

import jax

from jdss._checks import count_not_finite


class TrainingDivergedError(ArithmeticError):
    """The training loss became NaN or infinite; the message says when."""


def is_finite(tree: Any) -> bool:
    """Whether no value in any floating-point leaf is NaN or infinite."""
    return not any(count_not_finite(leaf) for leaf in jax.tree.leaves(tree))
