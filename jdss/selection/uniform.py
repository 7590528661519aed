"""Uniform random subsets: the skyline in time, and the baseline that every method must beat."""

import jax
import jax.numpy as jnp

from jdss import _checks
from jdss.gradients import Gradients
from jdss.subset import Subset


def uniform(
    gradients: Gradients | int,
    budget: int,
    *,
    key: jax.Array | None = None,
    mask: jax.Array | None = None,
    count: jax.Array | None = None,
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
      TypeError: without a key.
      ValueError: for a budget outside 1..n, or a mask of another shape.

    Example:
      >>> subset = uniform(10, 4, key=jax.random.key(0))
      >>> len(set(subset.indices.tolist())), subset.weights.tolist()
      (4, [1.0, 1.0, 1.0, 1.0])
    """
    num_examples = gradients if isinstance(gradients, int) else gradients.num_examples
    budget = _checks.check_budget(budget, num_examples)
    if key is None:
        raise TypeError("key must be a PRNG key (jax.random.key(seed)): uniform draws at random")
    mask = jnp.ones(num_examples, bool) if mask is None else jnp.asarray(mask)
    if mask.shape != (num_examples,):
        raise ValueError(f"mask must have shape ({num_examples},), got {mask.shape}")
    # The k largest of independent random priorities; padding has the lowest.
    priorities = jnp.where(mask, jax.random.uniform(key, (num_examples,)), -1.0)
    _, drawn = jax.lax.top_k(priorities, budget)
    available = jnp.maximum(mask.sum(), 1)
    filled = jnp.minimum(budget if count is None else count, mask.sum())
    places = jnp.arange(budget)
    return Subset(
        indices=drawn[places % available].astype(jnp.int32),
        weights=jnp.where(places < filled, 1.0, 0.0),
        num_selected=filled.astype(jnp.int32),
    )
