"""Checks of arrays, beside those of single values: early, and naming the argument.

Values are checked where they are concrete. Under a transformation (`jit`, `vmap`, …) only
shapes and types are known, and only those are checked. Concrete values that a transformed
function closes over are checked too: hence `jax.ensure_compile_time_eval`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdss._scalars import check_choice, check_fraction, check_positive_int, check_seed  # noqa: F401


def is_concrete(*trees: Any) -> bool:
    """Whether every leaf holds values, that is, none is being traced."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


def check_ndim(name: str, array: Any, ndim: int, shape: str) -> None:
    if array.ndim != ndim:
        raise ValueError(f"{name} must have shape {shape}, got shape {tuple(array.shape)}")


def check_same_length(**arrays: Any) -> None:
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        got = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise ValueError(f"{' and '.join(lengths)} must have one common length; {got}")


def check_finite(name: str, tree: Any) -> None:
    """Raises ValueError where a concrete floating-point leaf holds NaN or infinity."""
    for leaf in jax.tree.leaves(tree):
        array = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
        if is_concrete(array) and (bad := count_not_finite(array)):
            raise ValueError(
                f"{name} must be finite, but {bad} of its {array.size} values are NaN or infinite"
            )


def count_not_finite(array: Any) -> int:
    """How many values of a concrete array are NaN or infinite; 0 for integers."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return 0
    if not isinstance(array, jax.Array) or jax.default_backend() == "cpu":  # nothing to compile
        values = np.asarray(jax.block_until_ready(array))
        native = values if values.dtype.kind == "f" else values.astype(np.float32)  # bfloat16
        return int(native.size - np.isfinite(native).sum())
    with jax.ensure_compile_time_eval():
        return int((~jnp.isfinite(array)).sum())


def check_integers(name: str, values: Any) -> jax.Array:
    """The integers as an int32 array."""
    values = values if isinstance(values, jax.Array) else np.asarray(values)
    if not jnp.issubdtype(values.dtype, jnp.integer):
        raise TypeError(f"{name} must be of integers, got dtype {values.dtype}")
    return jnp.asarray(values, jnp.int32)


def check_nonnegative(name: str, value: Any) -> None:
    """Raises ValueError where a concrete number is negative or not finite."""
    if is_concrete(value) and not (np.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number, at least 0, got {value}")


def check_labels(
    labels: Any, *, num_examples: int, num_classes: int | None = None, name: str = "labels"
) -> jax.Array:
    """The labels as int32[num_examples]; of however many classes, if None."""
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"there must be at least one class, got num_classes={num_classes}")
    # Checked as they come: JAX would first cut integers of 64 bits down to 32.
    labels = labels if isinstance(labels, jax.Array) else np.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"{name} must be integers (class indices), got dtype {labels.dtype}")
    _check_one_each(name, labels, num_examples)
    if is_concrete(labels) and labels.size:
        with jax.ensure_compile_time_eval():
            smallest, largest = int(labels.min()), int(labels.max())
        num_classes = max(largest, 0) + 1 if num_classes is None else num_classes
        if smallest < 0 or largest >= num_classes:
            raise ValueError(
                f"{name} must be in 0..{num_classes - 1}, got values in {smallest}..{largest}"
            )
    return jnp.asarray(labels, jnp.int32)


def _check_one_each(name: str, array: Any, num_examples: int) -> None:
    if array.shape != (num_examples,):
        wanted = f"({num_examples},), one for each example"
        raise ValueError(f"{name} must have shape {wanted}, got shape {array.shape}")


def check_mask(mask: Any, num_examples: int) -> jax.Array:
    """The mask as bool[num_examples]; None allows all."""
    if mask is None:
        return jnp.ones(num_examples, bool)
    mask = mask if isinstance(mask, jax.Array) else np.asarray(mask)
    _check_one_each("mask", mask, num_examples)
    if mask.dtype != bool:
        raise TypeError(f"mask must be an array of bool, got dtype {mask.dtype}")
    return jnp.asarray(mask)


def check_count(count: Any, budget: int) -> jax.Array:
    """The places to fill as int32[]; None fills all."""
    if count is None:
        return jnp.int32(budget)
    if not jnp.issubdtype(jnp.result_type(count), jnp.integer):
        raise TypeError(f"count must be an integer, got dtype {jnp.result_type(count)}")
    if is_concrete(count):
        with jax.ensure_compile_time_eval():
            places = int(count)
        if not 0 <= places <= budget:
            raise ValueError(f"count must be in 0..{budget}, the budget, got {places}")
    return jnp.asarray(count, jnp.int32)


def check_examples(examples: Any) -> int:
    """The common length n of the leading axes of a pytree of arrays."""
    leaves: list[Any] = jax.tree.leaves(examples)
    lengths = {leaf.shape[0] if getattr(leaf, "ndim", 0) else 0 for leaf in leaves}
    if len(lengths) != 1 or lengths == {0}:
        raise ValueError(
            "examples must be arrays of one common length, at least 1, along the first axis; "
            f"got lengths {sorted(lengths)}"
        )
    return lengths.pop()
