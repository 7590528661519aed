"""The loss that is trained on, and whose gradients subsets are selected by."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: Any) -> jax.Array:
    """Cross-entropy float32[b] of softmax with targets `(1 - smoothing) onehot + smoothing / c`."""
    logits = logits.astype(jnp.float32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return losses + smoothing * (own - logits.mean(axis=1))
