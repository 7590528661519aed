"""Selection of whole mini-batches: a method of the protocol, lifted to their sums."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdss import _checks
from jdss.gradients import check_gradients, count_examples, sum_consecutive
from jdss.subset import Select, Subset, fill_places


def per_batch(select: Select, batch_size: int) -> Select:
    """Lifts a selection method to mini-batches: its atoms are sums over consecutive batches.

    ceil(budget / batch_size) of the ceil(n / batch_size) batches are chosen, whole, and the
    subset is cut to the budget. The sums are never densified: they stay sums of the rows. A
    short last batch is an atom like any other; what it lacks is filled with unused examples at
    weight 0. Every example carries the weight of its batch.

    Args:
      select: a method of the protocol.
      batch_size: examples in a batch, at least 1.

    Returns:
      `lifted(gradients, budget, *, key=None, mask=None, count=None, **options)`, a method of the
      protocol. Masked examples add nothing to their batch's sum and are never returned.

    Example:
      >>> import jdss
      >>> gradients = jdss.DenseGradients(jnp.eye(6).at[4:].mul(3.0))
      >>> subset = jdss.per_batch(jdss.grad_match, 2)(gradients, 2)
      >>> subset.indices
      Array([4, 5], dtype=int32)
    """
    batch_size = _checks.check_positive_int("batch_size", batch_size)

    def lifted(
        gradients: Any,
        budget: int,
        *,
        key: jax.Array | None = None,
        mask: jax.Array | None = None,
        count: jax.Array | None = None,
        **options: Any,
    ) -> Subset:
        is_size = isinstance(gradients, (int, np.integer))
        num_examples = count_examples(gradients) if is_size else check_gradients(gradients)
        budget = _checks.check_budget(budget, num_examples)
        allowed = _checks.check_mask(mask, num_examples)
        count = _checks.check_count(count, budget)
        num_batches = -(-num_examples // batch_size)
        padding = num_batches * batch_size - num_examples
        valid = jnp.pad(allowed, (0, padding)).reshape(num_batches, batch_size)
        atoms: Any
        if is_size:
            atoms = num_batches
        else:
            masked = jax.tree.map(
                lambda leaf: jnp.where(allowed.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, 0),
                gradients,
            )
            atoms = sum_consecutive(masked, batch_size)
        batches = select(
            atoms,
            -(-budget // batch_size),
            key=key,
            mask=valid.any(axis=1),
            count=-(-count // batch_size),
            **options,
        )
        # Every place of a chosen batch, without those that are padding or masked: a stable sort
        # moves these behind the others, and unused examples take their place.
        members = batches.indices[:, None] * batch_size + jnp.arange(batch_size)
        weights = jnp.broadcast_to(batches.weights[:, None], members.shape).ravel()
        by_method = jnp.arange(len(batches.indices)) < batches.num_selected
        real = valid[batches.indices].ravel()
        chosen = real & jnp.repeat(by_method, batch_size)
        order = jnp.argsort(jnp.where(chosen, 0, jnp.where(real, 1, 2)), stable=True)[:budget]
        num_real = jnp.minimum(real.sum(), count)
        indices = fill_places(
            jnp.where(real, members.ravel(), 0)[order],
            jnp.minimum(real.sum(), budget),
            num_examples,
            mask=allowed,
        )
        return Subset(
            indices=indices,
            weights=jnp.where(jnp.arange(budget) < num_real, weights[order], 0.0),
            num_selected=jnp.minimum(chosen.sum(), count).astype(jnp.int32),
        )

    return lifted
