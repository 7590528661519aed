"""Per-example gradients as linear operators.

Selection asks the n × p matrix of per-example gradients only for weighted sums of its rows, their
correlations with a target, inner products and norms. Three frozen pytrees answer without it:

- `FactoredGradients`: row i is `errors[i] ⊗ inputs[i]`, the exact gradient of a dense layer, in
  n (c + d) numbers instead of n c d.
- `DenseGradients`: the rows themselves, as `vmap(grad)` makes them, or a random projection of each.
- `SummedGradients`: row b is the sum of a group of consecutive rows of another operator, the
  mini-batch atoms of GRAD-MATCH's per-batch version.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, Self, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jdss import _checks

# A GPU would round the factors of a product to ten bits if it was allowed to.
EXACT = jax.lax.Precision.HIGHEST

_SKETCHED_AT_ONCE = 1 << 26  # numbers of gradients before they are projected: 256 MiB of float32

_Params = TypeVar("_Params")
_Tree = TypeVar("_Tree")
_Example = TypeVar("_Example")


@runtime_checkable
class Gradients(Protocol):
    """What a method may ask of n rows g_i, of shape [p] (dense gradients) or [c, d] (factored)."""

    @property
    def num_examples(self) -> int:
        """The number n of rows."""

    def weighted_sum(self, weights: jax.Array) -> jax.Array:
        """`Σ_i weights[i] g_i`, of the shape of a row, for `weights` float32[n]."""

    def correlate(self, target: jax.Array) -> jax.Array:
        """`⟨g_i, target⟩` for every row, float32[n]."""

    def inner_products(self, other: Self) -> jax.Array:
        """`⟨g_i, h_j⟩` for the rows h of another operator of the same kind, float32[n, m]."""

    def squared_norms(self) -> jax.Array:
        """`‖g_i‖²` for every row, float32[n]."""

    def take(self, indices: jax.Array) -> Self:
        """The operator of the rows `indices` int32[m], in that order."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DenseGradients:
    """Gradients stored as the rows of a matrix.

    Attributes:
      matrix: float32[n, p], row i is the gradient of example i.

    Example:
      >>> gradients = DenseGradients(jnp.array([[1.0, 0.0], [3.0, 4.0]]))
      >>> gradients.squared_norms(), gradients.weighted_sum(jnp.array([2.0, 1.0]))
      (Array([ 1., 25.], dtype=float32), Array([5., 4.], dtype=float32))
    """

    matrix: jax.Array

    @property
    def num_examples(self) -> int:
        return self.matrix.shape[0]

    def weighted_sum(self, weights: jax.Array) -> jax.Array:
        return jnp.matmul(weights, self.matrix, precision=EXACT)

    def correlate(self, target: jax.Array) -> jax.Array:
        return jnp.matmul(self.matrix, target, precision=EXACT)

    def inner_products(self, other: "DenseGradients") -> jax.Array:
        return jnp.matmul(self.matrix, other.matrix.T, precision=EXACT)

    def squared_norms(self) -> jax.Array:
        return jnp.sum(self.matrix**2, axis=1)

    def take(self, indices: jax.Array) -> "DenseGradients":
        return DenseGradients(self.matrix[indices])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FactoredGradients:
    """Gradients `errors[i] ⊗ inputs[i]`, of shape [c, d], of a dense layer, kept as two factors.

    Inner products factor as `(e_i · e_j) (h_i · h_j)`.

    Attributes:
      errors: float32[n, c], the derivative of example i's loss by the layer's outputs.
      inputs: float32[n, d], the layer's inputs, with a column of ones where it has a bias.

    Example:
      >>> gradients = FactoredGradients(jnp.array([[1.0, -1.0]]), jnp.array([[2.0, 3.0, 1.0]]))
      >>> gradients.weighted_sum(jnp.ones(1))
      Array([[ 2.,  3.,  1.],
             [-2., -3., -1.]], dtype=float32)
    """

    errors: jax.Array
    inputs: jax.Array

    @property
    def num_examples(self) -> int:
        return self.errors.shape[0]

    def weighted_sum(self, weights: jax.Array) -> jax.Array:
        return jnp.matmul((self.errors * weights[:, None]).T, self.inputs, precision=EXACT)

    def correlate(self, target: jax.Array) -> jax.Array:
        # In this order XLA's product on CPUs takes half the time of `inputs @ target.T`.
        products = jnp.matmul(target, self.inputs.T, precision=EXACT)
        return jnp.sum(products * self.errors.T, axis=0)

    def inner_products(self, other: "FactoredGradients") -> jax.Array:
        of_errors = jnp.matmul(self.errors, other.errors.T, precision=EXACT)
        return of_errors * jnp.matmul(self.inputs, other.inputs.T, precision=EXACT)

    def squared_norms(self) -> jax.Array:
        return jnp.sum(self.errors**2, axis=1) * jnp.sum(self.inputs**2, axis=1)

    def take(self, indices: jax.Array) -> "FactoredGradients":
        return FactoredGradients(self.errors[indices], self.inputs[indices])


_Rows = TypeVar("_Rows", DenseGradients, FactoredGradients)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SummedGradients:
    """Sums of `group_size` (static) consecutive rows. Made by `jdss.sum_consecutive`."""

    rows: DenseGradients | FactoredGradients
    group_size: int = field(metadata={"static": True})

    @property
    def num_examples(self) -> int:
        return self.rows.num_examples // self.group_size

    def weighted_sum(self, weights: jax.Array) -> jax.Array:
        return self.rows.weighted_sum(jnp.repeat(weights, self.group_size))

    def correlate(self, target: jax.Array) -> jax.Array:
        return self._sum_groups(self.rows.correlate(target))

    def inner_products(self, other: "SummedGradients") -> jax.Array:
        # A group at a time: all rows by all rows would be group_size² times as many numbers.
        def with_others(group: Any) -> jax.Array:
            return other._sum_groups(group.inner_products(other.rows).sum(axis=0))

        return jax.lax.map(with_others, self._grouped())

    def squared_norms(self) -> jax.Array:
        def squared_norm(group: Any) -> jax.Array:
            return jnp.sum(group.inner_products(group))

        return jax.lax.map(squared_norm, self._grouped())

    def take(self, indices: jax.Array) -> "SummedGradients":
        taken = jax.tree.map(lambda leaf: leaf[indices], self._grouped())
        rows = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), taken)
        return SummedGradients(rows, self.group_size)

    def _grouped(self) -> DenseGradients | FactoredGradients:
        """The rows with a leading axis for the group: leaves of shape [m, group_size, …]."""
        return jax.tree.map(
            lambda leaf: leaf.reshape(-1, self.group_size, *leaf.shape[1:]), self.rows
        )

    def _sum_groups(self, values: jax.Array) -> jax.Array:
        return values.reshape(-1, self.group_size, *values.shape[1:]).sum(axis=1)


def sum_consecutive(gradients: _Rows, group_size: int) -> SummedGradients:
    """The ceil(n / group_size) sums of mini-batches of n dense or factored gradients.

    A short last mini-batch is an atom like any other; `group_size` is an int of at least 1.

    Example:
      >>> batches = sum_consecutive(DenseGradients(jnp.array([[1.0], [2.0], [3.0]])), 2)
      >>> batches.num_examples, batches.correlate(jnp.ones(1))
      (2, Array([3., 3.], dtype=float32))
    """
    group_size = _checks.check_positive_int("group_size", group_size)
    padding = -gradients.num_examples % group_size
    rows = jax.tree.map(
        lambda leaf: jnp.pad(leaf, [(0, padding)] + [(0, 0)] * (leaf.ndim - 1)), gradients
    )
    return SummedGradients(rows, group_size)


# Of the last layer ---------------------------------------------------------------------------


def last_layer_gradients(
    logits: jax.Array, inputs: jax.Array, labels: jax.Array
) -> FactoredGradients:
    """Gradients of the softmax cross-entropy by the weights and bias of the last dense layer.

    That of example i is `(softmax(logits_i) - onehot_i) ⊗ [inputs_i, 1]`, exactly.

    Args:
      logits: float[n, c], outputs of the last dense layer.
      inputs: float[n, d - 1], inputs of the last dense layer, without the ones of the bias.
      labels: int[n], class indices in 0..c-1.

    Raises:
      TypeError, ValueError: for arguments not as above, or values that are not finite.

    Example:
      >>> gradients = last_layer_gradients(jnp.zeros((2, 4)), jnp.ones((2, 3)), jnp.array([0, 3]))
      >>> gradients.errors[1], gradients.inputs.shape
      (Array([ 0.25,  0.25,  0.25, -0.75], dtype=float32), (2, 4))
    """
    logits, inputs = jnp.asarray(logits), jnp.asarray(inputs)
    _checks.check_ndim("logits", logits, 2, "[n, c]")
    _checks.check_ndim("inputs", inputs, 2, "[n, d - 1]")
    _checks.check_same_length(logits=logits, inputs=inputs)
    labels = _checks.check_labels(labels, num_examples=len(logits), num_classes=logits.shape[1])
    _checks.check_finite("logits", logits)
    _checks.check_finite("inputs", inputs)
    return FactoredGradients(cross_entropy_errors(logits, labels), append_ones(inputs))


def cross_entropy_errors(
    logits: jax.Array, labels: jax.Array, label_smoothing: float | jax.Array = 0.0
) -> jax.Array:
    """Cross-entropy derived by the logits: softmax - smoothed one-hot targets, float32[n, c]."""
    num_classes = logits.shape[1]
    onehot = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    target = onehot + label_smoothing * (1 / num_classes - onehot)
    return jax.nn.softmax(logits.astype(jnp.float32)) - target


def append_ones(inputs: jax.Array) -> jax.Array:
    """[n, d - 1] to float32[n, d]: the layer's inputs with the constant input of its bias."""
    ones = jnp.ones((len(inputs), 1), jnp.float32)
    return jnp.concatenate([inputs.astype(jnp.float32), ones], axis=1)


# Of all parameters ---------------------------------------------------------------------------


def per_example_gradients(
    loss_fn: Callable[[_Params, _Example], jax.Array],
    params: _Params,
    examples: _Example,
    *,
    batch_size: int | None = None,
) -> DenseGradients:
    """Gradients float32[n, p] of every example's loss by all of `params`: `vmap(grad)`, flattened.

    Args:
      loss_fn: `loss_fn(params, example) -> scalar`, the loss of one example.
      params: a pytree of float arrays with p numbers in all, in the order of `ravel_pytree`.
      examples: a pytree of arrays whose leading axis is the n examples.
      batch_size: how many examples are differentiated at once, which bounds memory. None: all.

    Raises:
      TypeError, ValueError: for arguments not as above.

    Example:
      >>> loss = lambda w, example: 0.5 * (w @ example["x"] - example["y"]) ** 2
      >>> examples = {"x": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "y": jnp.array([1.0, 2.0])}
      >>> per_example_gradients(loss, jnp.zeros(2), examples).matrix
      Array([[-1., -2.],
             [-6., -8.]], dtype=float32)
    """
    length = _checks.check_examples(examples)
    at_once = length if batch_size is None else batch_size
    at_once = min(_checks.check_positive_int("batch_size", at_once), length)
    return DenseGradients(_rows(loss_fn, params, examples, None, at_once))


def projected_gradients(
    loss_fn: Callable[[_Params, _Example], jax.Array],
    params: _Params,
    examples: _Example,
    key: jax.Array,
    *,
    dimension: int = 512,
    batch_size: int | None = None,
) -> DenseGradients:
    """`per_example_gradients`, each projected at random (see `Sketch`) as soon as it is made.

    Args:
      loss_fn, params, examples: as in `per_example_gradients`.
      key: a PRNG key: rows of two calls with one key can be compared.
      dimension: q, the numbers kept of each gradient (all p where there are fewer). An inner
        product is off by about `‖g‖‖h‖ / √q`: 4% of the norms at 512.
      batch_size: how many gradients are held at once; None means as many as fit into 256 MiB.

    Example:
      >>> loss, key = lambda w, x: 0.5 * (w @ x - 1.0) ** 2, jax.random.key(1)
      >>> projected_gradients(loss, jnp.zeros(40), jnp.ones((6, 40)), key, dimension=8).matrix.shape
      (6, 8)
    """
    length = _checks.check_examples(examples)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    sketch = make_sketch(key, size, dimension)
    at_once = rows_at_once(size) if batch_size is None else batch_size
    at_once = min(_checks.check_positive_int("batch_size", at_once), length)
    return DenseGradients(_rows(loss_fn, params, examples, sketch, at_once))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sketch:
    """A random linear map from p to q numbers that keeps inner products in expectation.

    Each coordinate goes with a random sign into one of q buckets (Charikar, Chen and Farach-Colton,
    2002; Weinberger et al., "Feature hashing for large scale multitask learning", 2009), here of
    equal size:

        (S g)_b = Σ_{j in b} σ_j g_j,    E⟨S g, S h⟩ = ⟨g, h⟩,    Var ≲ (‖g‖²‖h‖² + ⟨g, h⟩²) / q.

    It costs one pass over a row, where a Gaussian matrix would cost q of them and hold p·q numbers.
    """

    order: jax.Array  # int32[p], a permutation; bucket b has the coordinates at places b, b + q, …
    signs: jax.Array  # int8[p], the sign of the coordinate at each of those places
    dimension: int = field(metadata={"static": True})  # q

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
    return max(_SKETCHED_AT_ONCE // num_parameters, 1)


@partial(jax.jit, static_argnames=("loss_fn", "chunk"))
def _rows(
    loss_fn: Callable[..., jax.Array], params: Any, examples: Any, sketch: Sketch | None, chunk: int
) -> jax.Array:
    def row(example: Any) -> jax.Array:
        gradient: jax.Array = ravel_pytree(jax.grad(loss_fn)(params, example))[0]
        gradient = gradient.astype(jnp.float32)
        return gradient if sketch is None else sketch(gradient[None])[0]

    return jax.lax.map(row, examples, batch_size=chunk)


# Checks --------------------------------------------------------------------------------------


def count_examples(gradients: Gradients | int) -> int:
    """The number n of rows of gradients, or of the examples that an int stands for."""
    if isinstance(gradients, (int, np.integer)):
        return int(gradients)
    if not hasattr(gradients, "num_examples"):
        raise TypeError(
            "gradients must be an operator such as jdss.DenseGradients(matrix), got "
            f"{type(gradients).__name__}"
        )
    return gradients.num_examples


def check_gradients(gradients: Any) -> int:
    """Checks an operator's types, shapes and values; returns the number n of its rows."""
    if any(not hasattr(leaf, "dtype") for leaf in jax.tree.leaves(gradients)):
        raise TypeError(f"gradients must be an operator that holds arrays, got {gradients!r}")
    num_examples = count_examples(gradients)
    rows = gradients.rows if isinstance(gradients, SummedGradients) else gradients
    if isinstance(rows, DenseGradients):
        _checks.check_ndim("gradients.matrix", rows.matrix, 2, "[n, p]")
    if isinstance(rows, FactoredGradients):
        _checks.check_ndim("gradients.errors", rows.errors, 2, "[n, c]")
        _checks.check_ndim("gradients.inputs", rows.inputs, 2, "[n, d]")
        _checks.check_same_length(
            **{"gradients.errors": rows.errors, "gradients.inputs": rows.inputs}
        )
    for leaf in jax.tree.leaves(rows):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(f"gradients must be of floating-point numbers, got dtype {leaf.dtype}")
    _checks.check_finite("gradients", gradients)
    return num_examples


def row_shape(gradients: Gradients) -> tuple[int, ...]:
    """The shape of one row, and so of a target: (p,) or (c, d)."""
    ones = jax.ShapeDtypeStruct((gradients.num_examples,), jnp.float32)
    return jax.eval_shape(gradients.weighted_sum, ones).shape


def cast(tree: _Tree, dtype: Any) -> _Tree:
    """The tree with its arrays of floating-point numbers in `dtype`."""

    def cast_leaf(leaf: Any) -> Any:
        is_float = jnp.issubdtype(getattr(leaf, "dtype", bool), jnp.floating)
        return leaf.astype(dtype) if is_float else leaf

    return jax.tree.map(cast_leaf, tree)
