"""What a training that diverges looks like."""

from typing import Any

import jax
import jax.numpy as jnp

from jdss.compilation import jit_for_few_runs


class TrainingDivergedError(ArithmeticError):
    """The training loss became NaN or infinite; the message says when."""


@jit_for_few_runs
def is_finite(tree: Any) -> jax.Array:
    """Whether no value in any leaf is NaN or infinite, bool[]."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()
