"""MILO: what a model's features say once serves every training of a search.

Killamsetty et al., "MILO: Model-Agnostic Subset Selection Framework for Efficient Model Training
and Tuning", 2023. Examples that are unlike the others of their class are drawn more often; who is
so is found once, by the features of any model, and a subset costs no more than a random one. So it
can be drawn anew every epoch.

What is done differently: MILO draws in proportion to a Taylor softmax of the gains, 1 + g + g²/2,
which on MNIST is hardly other than drawing evenly; here it is in proportion to the gains, the
importance itself. Its first phase, subsets by a graph cut, trained worse than random ones and is
left out.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdss import _checks
from jdss.compilation import jit
from jdss.data.labels import encode_labels
from jdss.gradients import EXACT, Gradients, count_examples
from jdss.selection.uniform import draw
from jdss.subset import Subset

_MOST_PICKS = 2_048  # of a class; what is left then is told apart by where it stands
_ROUNDING = 1e-6  # what is nearer is the same
_LEAST = 1e-4  # of the largest: what is another's double can be drawn, too


def milo(
    gradients: Gradients | int,
    budget: int,
    *,
    importance: Any,
    key: jax.Array | None = None,
    mask: Any = None,
    count: Any = None,
) -> Subset:
    """A random subset without replacement, drawn in proportion to importance, of weights 1.

    Args:
      gradients: n rows, of which only the number matters; an int n may stand for them.
      budget: the number k of places, static, in 1..n.
      importance: float[n], positive; see `jdss.importance`.
      key: a PRNG key; required.
      mask, count: as in `jdss.uniform`.

    Raises:
      TypeError, ValueError: without a key, or for arguments not as above.

    Example:
      >>> subset = milo(4, 2, importance=[1e-6, 1.0, 1.0, 1e-6], key=jax.random.key(0))
      >>> sorted(subset.indices.tolist())
      [1, 2]
    """
    num_examples = count_examples(gradients)
    importance = jnp.asarray(importance, jnp.float32)
    if importance.shape != (num_examples,):
        raise ValueError(
            f"importance must have shape ({num_examples},), got shape {importance.shape}"
        )
    check_importance("importance", importance)
    # The largest of Gumbel's variables around the logarithms are a draw without replacement
    # (Efraimidis and Spirakis, 2006).
    return draw(
        lambda key: jnp.log(importance) + jax.random.gumbel(key, (num_examples,)),
        num_examples,
        budget,
        key=key,
        mask=mask,
        count=count,
    )


def check_importance(name: str, values: Any) -> None:
    """Raises ValueError where values are concrete, and not all of them are finite and positive."""
    _checks.check_finite(name, values)
    if _checks.is_concrete(values) and not (np.asarray(values) > 0).all():
        raise ValueError(f"{name} must be positive")


def importance(features: Any, labels: Any = None) -> jax.Array:
    """How unlike the others of its class each example is: the gains of a farthest-first order.

    Greedy maximisation of disparity-min, `f(S) = min_{i≠j∈S} (1 - cos(x_i, x_j))`, class by class:
    next comes the example that is farthest from those before it, and that distance is its gain. Of
    the first two, the first being farthest from the class's mean direction, it is their distance.

    Args:
      features: float[n, …], such as the inputs of a model's last layer.
      labels: int[n], class indices, or strings or booleans; None means one class.

    Returns:
      float32[n], in (0, 2]; the same for every model, fraction and seed that trains on them.

    Raises:
      TypeError, ValueError: for features that are not finite, or labels that are no classes [n].

    Example:
      >>> importance([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]).round(1)
      Array([1. , 0.3, 1. ], dtype=float32)
    """
    features = jnp.asarray(features, jnp.float32)
    if features.ndim < 2 or not len(features):
        raise ValueError(f"features must have shape [n, …], n at least 1, got {features.shape}")
    _checks.check_finite("features", features)
    rows = _directions(features.reshape(len(features), -1))
    labels = np.zeros(len(rows), np.int32) if labels is None else encode_labels(labels)[0]
    labels = np.asarray(_checks.check_labels(labels, num_examples=len(rows)))
    sizes = np.bincount(labels)
    width = int(sizes.max())
    # Class after class, those of small ones filled up.
    members = np.full((len(sizes), width), len(rows), np.int32)
    for label, size in enumerate(sizes):
        members[label, :size] = np.flatnonzero(labels == label)
    return _gains(rows, members, min(width, _MOST_PICKS))


@partial(jit, static_argnames="picks")
def _gains(rows: jax.Array, members: jax.Array, picks: int) -> jax.Array:
    """The gains float32[n] of directions [n, d] in classes int32[c, m] (n for no example)."""
    product = partial(jnp.matmul, precision=EXACT)  # near 1, where little tells them apart

    def of_class(own: jax.Array) -> jax.Array:
        is_there = own < len(rows)
        mine = jnp.where(is_there[:, None], rows[own % len(rows)], 0.0)

        def pick(_: int, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            distances, gains = state  # of those picked already: -1, and their gain
            best = jax.lax.argmax(distances, 0, jnp.int32)
            gains = gains.at[best].max(distances[best])
            nearest = jnp.minimum(distances, 1 - product(mine, mine[best]))
            return jnp.where(distances < 0, -1.0, nearest).at[best].set(-1.0), gains

        # The first is the one farthest from the others' sum; its gain is that of the second.
        first = jax.lax.argmin(
            jnp.where(is_there, product(mine, mine.sum(axis=0)), jnp.inf), 0, jnp.int32
        )
        distances = jnp.where(is_there, jnp.maximum(1 - product(mine, mine[first]), 0.0), -1.0)
        gains = jnp.zeros(len(own)).at[first].set(distances.at[first].set(-1.0).max())
        start = distances.at[first].set(-1.0), gains
        distances, gains = jax.lax.fori_loop(0, picks, pick, start)
        return jnp.where(is_there, jnp.maximum(gains, distances), 0.0)

    found = jax.lax.map(of_class, members)
    # Alone in its class, an example is as unlike the others as any.
    is_alone = (members < len(rows)).sum(axis=1, keepdims=True) == 1
    found = jnp.where(is_alone, found.max(), found)
    gains = jnp.zeros(len(rows)).at[members.ravel()].set(found.ravel(), mode="drop")
    return jnp.clip(gains, jnp.maximum(_LEAST * gains.max(), _ROUNDING), 2.0)


def _directions(rows: jax.Array) -> jax.Array:
    """Rows of length 1; zeros, which have no direction, have one of their own."""
    rows = rows / jnp.maximum(jnp.abs(rows).max(axis=1, keepdims=True), jnp.finfo(rows.dtype).tiny)
    is_zero = ~rows.any(axis=1, keepdims=True)
    rows = jnp.concatenate([rows, is_zero], axis=1) if is_zero.any() else rows
    return rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
