"""Uniform random subsets: the skyline in time, and the baseline that every method must beat."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jdss.gradients import Gradients, count_examples
from jdss.subset import Subset, check_places


def uniform(
    gradients: Gradients | int,
    budget: int,
    *,
    key: jax.Array | None = None,
    mask: Any = None,
    count: Any = None,
) -> Subset:
    """A uniformly random subset without replacement, of weights 1.

    Args:
      gradients: n rows, of which only the number matters; an int n may stand for them.
      budget: the number k of places, static, in 1..n.
      key: a PRNG key; required.
      mask: bool[n], False for padding, which is never drawn. Where fewer than k examples are
        left, all of them are drawn, and the remaining places repeat them at weight 0.
      count: int32[] at most k, the places to fill; the others hold weight 0. None fills all.

    Raises:
      TypeError, ValueError: without a key, or for arguments not as above.

    Example:
      >>> subset = uniform(10, 4, key=jax.random.key(0))
      >>> len(set(subset.indices.tolist())), subset.weights.tolist()
      (4, [1.0, 1.0, 1.0, 1.0])
    """
    num_examples = count_examples(gradients)
    return draw(
        lambda key: jax.random.uniform(key, (num_examples,)),
        num_examples,
        budget,
        key=key,
        mask=mask,
        count=count,
    )


def draw(
    priorities: Callable[[jax.Array], jax.Array],
    num_examples: int,
    budget: int,
    *,
    key: jax.Array | None,
    mask: Any,
    count: Any,
) -> Subset:
    """Those of the largest random priorities float32[n], by a function of the key; of weights 1."""
    budget, mask, count = check_places(budget, num_examples, mask, count)
    if key is None:
        raise TypeError(
            "key must be a PRNG key (jax.random.key(seed)): the subset is drawn at random"
        )
    _, drawn = jax.lax.top_k(jnp.where(mask, priorities(key), -jnp.inf), budget)
    places, filled = jnp.arange(budget), jnp.minimum(count, mask.sum())
    return Subset(
        indices=drawn[places % jnp.maximum(mask.sum(), 1)].astype(jnp.int32),
        weights=(places < filled).astype(jnp.float32),
        num_selected=filled.astype(jnp.int32),
    )
