"""Gradients of all parameters, each row projected at random to a few hundred numbers.

The n × p matrix of per-example gradients does not fit into memory for more than small networks,
but selection only asks for inner products between rows, and those survive a random projection
(Johnson and Lindenstrauss, 1984). A *sketch* adds each coordinate, with a random sign, to one of q
buckets (Charikar, Chen and Farach-Colton, "Finding frequent items in data streams", 2002;
Weinberger et al., "Feature hashing for large scale multitask learning", ICML 2009):

    (S g)_b = Σ_{j in bucket b} σ_j g_j,    E⟨S g, S h⟩ = ⟨g, h⟩,    Var ≲ (‖g‖²‖h‖² + ⟨g, h⟩²) / q.

It costs one pass over a row, where a matrix of Gaussian numbers would cost q of them and hold p·q.
Here the buckets are of equal size, and are made by a random permutation of the coordinates.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jdss import _checks
from jdss.gradients import DenseGradients

_Params = TypeVar("_Params")
_Example = TypeVar("_Example")

_CHUNK_NUMBERS = 1 << 26  # numbers in a chunk of rows that is held at once: 256 MiB of float32


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sketch:
    """A random linear map from p to q numbers that keeps inner products in expectation.

    Attributes:
      order: int32[p], a permutation of the coordinates; bucket b holds the coordinates at the
        places b, b + q, b + 2q, … of it.
      signs: int8[p], the sign of the coordinate at each of those places.
      dimension: q; static.
    """

    order: jax.Array
    signs: jax.Array
    dimension: int = field(metadata={"static": True})

    def __call__(self, rows: jax.Array) -> jax.Array:
        """float32[b, p] to float32[b, q]."""
        signed = rows[:, self.order] * self.signs
        padded = jnp.pad(signed, ((0, 0), (0, -rows.shape[1] % self.dimension)))
        return padded.reshape(len(rows), -1, self.dimension).sum(axis=1)


def make_sketch(key: jax.Array, size: int, dimension: int) -> Sketch:
    """A `Sketch` of vectors of `size` p to `dimension` q numbers, which is at most p."""
    order_key, sign_key = jax.random.split(key)
    return Sketch(
        order=jax.random.permutation(order_key, size),
        signs=jax.random.rademacher(sign_key, (size,), jnp.int8),
        dimension=min(_checks.check_positive_int("dimension", dimension), size),
    )


def rows_at_once(num_parameters: int) -> int:
    """How many gradients of so many parameters are held at once, before they are projected."""
    return max(_CHUNK_NUMBERS // num_parameters, 1)


def projected_gradients(
    loss_fn: Callable[[_Params, _Example], jax.Array],
    params: _Params,
    examples: _Example,
    key: jax.Array,
    *,
    dimension: int = 512,
    batch_size: int | None = None,
) -> DenseGradients:
    """Random projections of every example's gradient by all of `params`, in chunks.

    The gradients are those of `jdss.per_example_gradients`; of its n × p matrix only a chunk of
    rows exists at a time. The same key gives the same projection, so that the rows of two calls
    with one key can be compared.

    Args:
      loss_fn: `loss_fn(params, example) -> scalar`, the loss of one example.
      params: a pytree of float arrays with p numbers in all.
      examples: a pytree of arrays whose leading axis is the n examples.
      key: a PRNG key; it alone decides on the projection.
      dimension: q, the numbers kept of each gradient (all p where there are fewer). An inner
        product is off by about `‖g‖‖h‖ / √q`: 4% of the norms at 512.
      batch_size: how many gradients are held at once. None means as many as fit into 256 MiB.

    Returns:
      `DenseGradients` with a matrix float32[n, q].

    Raises:
      ValueError: if the examples are empty or differ in length, or `dimension` or `batch_size` is
        below 1.
      TypeError: if `dimension` or `batch_size` is not an int.

    Example:
      >>> loss = lambda w, example: 0.5 * (w @ example["x"] - example["y"]) ** 2
      >>> examples = {"x": jax.random.normal(jax.random.key(0), (6, 40)), "y": jnp.ones(6)}
      >>> projected_gradients(
      ...     loss, jnp.zeros(40), examples, jax.random.key(1), dimension=8
      ... ).matrix.shape
      (6, 8)
    """
    length = _checks.check_examples(examples)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    sketch = make_sketch(key, size, dimension)
    if batch_size is None:
        batch_size = min(rows_at_once(size), length)
    batch_size = _checks.check_positive_int("batch_size", batch_size)
    return DenseGradients(_rows(loss_fn, params, examples, sketch, min(batch_size, length)))


@partial(jax.jit, static_argnames=("loss_fn", "chunk"))
def _rows(
    loss_fn: Callable[..., jax.Array], params: Any, examples: Any, sketch: Sketch, chunk: int
) -> jax.Array:
    def project(example: Any) -> jax.Array:
        gradient: jax.Array = ravel_pytree(jax.grad(loss_fn)(params, example))[0]
        return sketch(gradient[None].astype(jnp.float32))[0]

    return jax.lax.map(project, examples, batch_size=chunk)
