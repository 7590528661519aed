"""Per-example gradients as linear operators.

The n × p matrix of per-example gradients is never needed by itself: selection only asks it for
weighted sums of its rows, correlations of its rows with a target, inner products between rows,
and norms. Three operators answer these questions:

- `FactoredGradients`: row i is the outer product `errors[i] ⊗ inputs[i]`, which is the exact
  gradient of a dense layer. It costs n (c + d) numbers instead of n c d.
- `DenseGradients`: the rows themselves, as `vmap(grad)` makes them.
- `SummedGradients`: each row is the sum of a group of consecutive rows of another operator
  (the mini-batch atoms of GRAD-MATCH's per-batch version), again without densifying.

All three are frozen pytrees, so they pass through `jit`, `vmap` and `pmap`.
"""

import math
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
_EXACT = jax.lax.Precision.HIGHEST

_Params = TypeVar("_Params")
_Example = TypeVar("_Example")


@runtime_checkable
class Gradients(Protocol):
    """What a selection method may ask of the per-example gradients.

    `n` is the number of rows and `target` stands for an array of the shape of one row:
    `[p]` for dense gradients, `[c, d]` for factored ones.
    """

    @property
    def num_examples(self) -> int:
        """The number n of rows."""
        ...

    def weighted_sum(self, weights: jax.Array) -> jax.Array:
        """`Σ_i weights[i] g_i`, of the shape of a row, for `weights` float32[n]."""
        ...

    def correlate(self, target: jax.Array) -> jax.Array:
        """`⟨g_i, target⟩` for every row, float32[n]."""
        ...

    def inner_products(self, other: Self) -> jax.Array:
        """`⟨g_i, h_j⟩` for the rows h of another operator of the same kind, float32[n, m]."""
        ...

    def squared_norms(self) -> jax.Array:
        """`‖g_i‖²` for every row, float32[n]."""
        ...

    def take(self, indices: jax.Array) -> Self:
        """The operator of the rows `indices` int32[m], in that order."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DenseGradients:
    """Per-example gradients stored as the rows of a matrix.

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
        return jnp.matmul(weights, self.matrix, precision=_EXACT)

    def correlate(self, target: jax.Array) -> jax.Array:
        return jnp.matmul(self.matrix, target, precision=_EXACT)

    def inner_products(self, other: "DenseGradients") -> jax.Array:
        return jnp.matmul(self.matrix, other.matrix.T, precision=_EXACT)

    def squared_norms(self) -> jax.Array:
        return jnp.sum(self.matrix**2, axis=1)

    def take(self, indices: jax.Array) -> "DenseGradients":
        return DenseGradients(self.matrix[indices])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FactoredGradients:
    """Per-example gradients of a dense layer, kept as their two factors.

    Row i is `errors[i] ⊗ inputs[i]`, a matrix of shape [c, d]. Inner products factor as
    `(e_i · e_j) (h_i · h_j)`, so a Gram block costs n² (c + d) operations instead of n² c d.

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
        return jnp.matmul((self.errors * weights[:, None]).T, self.inputs, precision=_EXACT)

    def correlate(self, target: jax.Array) -> jax.Array:
        # In this order XLA's product on CPUs takes half the time of `inputs @ target.T`.
        products = jnp.matmul(target, self.inputs.T, precision=_EXACT)
        return jnp.sum(products * self.errors.T, axis=0)

    def inner_products(self, other: "FactoredGradients") -> jax.Array:
        of_errors = jnp.matmul(self.errors, other.errors.T, precision=_EXACT)
        return of_errors * jnp.matmul(self.inputs, other.inputs.T, precision=_EXACT)

    def squared_norms(self) -> jax.Array:
        return jnp.sum(self.errors**2, axis=1) * jnp.sum(self.inputs**2, axis=1)

    def take(self, indices: jax.Array) -> "FactoredGradients":
        return FactoredGradients(self.errors[indices], self.inputs[indices])


_Rows = TypeVar("_Rows", DenseGradients, FactoredGradients)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SummedGradients:
    """Sums over groups of `group_size` consecutive rows of another operator.

    Row b is `Σ_i g_i` over the rows `b · group_size, …, (b + 1) · group_size - 1` of `rows`.
    Made by `sum_consecutive`, which pads a short last group with rows of zeros.

    Attributes:
      rows: the operator whose rows are summed, with m · group_size rows.
      group_size: the number of rows a sum has; static.

    Made by `jdss.sum_consecutive`.
    """

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
        def with_others(group: DenseGradients | FactoredGradients) -> jax.Array:
            products = group.inner_products(other.rows)  # type: ignore[arg-type]
            return other._sum_groups(products.sum(axis=0))

        return jax.lax.map(with_others, self._grouped())

    def squared_norms(self) -> jax.Array:
        def squared_norm(group: DenseGradients | FactoredGradients) -> jax.Array:
            return jnp.sum(group.inner_products(group))  # type: ignore[arg-type]

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
    """Sums of consecutive mini-batches of gradients, as an operator.

    A short last batch is an atom like any other: it is padded with gradients of zero.

    Args:
      gradients: n rows, dense or factored.
      group_size: the size of a mini-batch, at least 1.

    Returns:
      An operator with ceil(n / group_size) rows.

    Raises:
      TypeError, ValueError: for a group size that is not an int of at least 1.

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


def last_layer_gradients(
    logits: jax.Array, inputs: jax.Array, labels: jax.Array
) -> FactoredGradients:
    """Gradients of the softmax cross-entropy by the weights and bias of the last dense layer.

    For example i the gradient is `(softmax(logits_i) - onehot_i) ⊗ [inputs_i, 1]`; it is exact,
    and it is kept as these two factors.

    Args:
      logits: float[n, c], outputs of the last dense layer.
      inputs: float[n, d - 1], inputs of the last dense layer.
      labels: int[n], class indices in 0..c-1.

    Returns:
      `FactoredGradients` with errors float32[n, c] and inputs float32[n, d]; the last column of
      the inputs is the column of ones of the bias.

    Raises:
      TypeError: if the labels are not integers.
      ValueError: if the shapes disagree, a label is outside 0..c-1, or a value is not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> gradients = last_layer_gradients(jnp.zeros((2, 4)), jnp.ones((2, 3)), jnp.array([0, 3]))
      >>> gradients.errors[1]
      Array([ 0.25,  0.25,  0.25, -0.75], dtype=float32)
      >>> gradients.inputs.shape
      (2, 4)
    """
    logits, inputs = jnp.asarray(logits), jnp.asarray(inputs)
    _checks.check_ndim("logits", logits, 2, "[n, c]")
    _checks.check_ndim("inputs", inputs, 2, "[n, d - 1]")
    _checks.check_same_length(logits=logits, inputs=inputs)
    labels = _checks.check_labels(labels, num_examples=len(logits), num_classes=logits.shape[1])
    _checks.check_finite("logits", logits)
    _checks.check_finite("inputs", inputs)
    return FactoredGradients(
        errors=cross_entropy_errors(logits, labels), inputs=append_ones(inputs)
    )


def cross_entropy_errors(
    logits: jax.Array, labels: jax.Array, label_smoothing: float | jax.Array = 0.0
) -> jax.Array:
    """`softmax(logits_i) - target_i` float32[n, c], the cross-entropy derived by the logits.

    The target is `(1 - label_smoothing) onehot_i + label_smoothing / c`.
    """
    num_classes = logits.shape[1]
    onehot = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    target = onehot + label_smoothing * (1 / num_classes - onehot)
    return jax.nn.softmax(logits.astype(jnp.float32)) - target


def append_ones(inputs: jax.Array) -> jax.Array:
    """[n, d - 1] to float32[n, d]: the layer's inputs with the constant input of its bias."""
    ones = jnp.ones((len(inputs), 1), jnp.float32)
    return jnp.concatenate([inputs.astype(jnp.float32), ones], axis=1)


def per_example_gradients(
    loss_fn: Callable[[_Params, _Example], jax.Array],
    params: _Params,
    examples: _Example,
    *,
    batch_size: int | None = None,
) -> DenseGradients:
    """Gradients of every example's loss by all of `params`: `vmap(grad)`, flattened.

    Args:
      loss_fn: `loss_fn(params, example) -> scalar`, the loss of one example.
      params: a pytree of float arrays with p numbers in all.
      examples: a pytree of arrays whose leading axis is the n examples.
      batch_size: how many examples are differentiated at once. None takes all of them; a
        smaller number bounds the memory of the intermediate values (the result has n × p
        numbers in either case).

    Returns:
      `DenseGradients` with a matrix float32[n, p], the columns in the order of
      `jax.flatten_util.ravel_pytree(params)`.

    Raises:
      ValueError: if the examples are empty or differ in length, or `batch_size` is below 1.
      TypeError: if `batch_size` is not an int.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = lambda w, example: 0.5 * (w @ example["x"] - example["y"]) ** 2
      >>> examples = {"x": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "y": jnp.array([1.0, 2.0])}
      >>> per_example_gradients(loss, jnp.zeros(2), examples).matrix
      Array([[-1., -2.],
             [-6., -8.]], dtype=float32)
    """
    length = _checks.check_examples(examples)
    if batch_size is not None:
        batch_size = _checks.check_positive_int("batch_size", batch_size)

    chunk = length if batch_size is None else min(batch_size, length)
    return DenseGradients(_rows(loss_fn, params, examples, chunk))


@partial(jax.jit, static_argnames=("loss_fn", "chunk"))
def _rows(loss_fn: Callable[..., jax.Array], params: Any, examples: Any, chunk: int) -> jax.Array:
    def gradient(example: Any) -> jax.Array:
        row: jax.Array = ravel_pytree(jax.grad(loss_fn)(params, example))[0]
        return row.astype(jnp.float32)

    return jax.lax.map(gradient, examples, batch_size=chunk)


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
    """Checks the gradients that a method is given, and returns the number n of their rows.

    Raises:
      TypeError: where they are no operator, or of numbers that are not floating-point.
      ValueError: where the shapes of an operator's parts disagree, or a value is not finite.
    """
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
    """The shape of one row, and so of a target: (p,) for dense gradients, (c, d) for factored."""
    if isinstance(gradients, SummedGradients):
        return row_shape(gradients.rows)
    if isinstance(gradients, FactoredGradients):
        return gradients.errors.shape[-1], gradients.inputs.shape[-1]
    if isinstance(gradients, DenseGradients):
        return gradients.matrix.shape[1:]
    ones = jax.ShapeDtypeStruct((gradients.num_examples,), jnp.float32)
    return jax.eval_shape(gradients.weighted_sum, ones).shape


def row_size(gradients: Gradients) -> int:
    """The number p of entries of one row."""
    return math.prod(row_shape(gradients))
