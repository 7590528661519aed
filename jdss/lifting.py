"""Selection methods lifted to one problem for each class, and to sums over mini-batches."""

import math
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdss import _checks, parallel
from jdss.compilation import jit
from jdss.gradients import Gradients, check_gradients, count_examples, sum_consecutive
from jdss.subset import Select, Subset, check_places, class_shares, fill_places


def per_batch(select: Select, batch_size: int) -> Select:
    """Lifts a selection method to mini-batches: its atoms are sums over consecutive batches.

    ceil(budget / batch_size) batches are chosen by the method `select`, whole, and the subset is
    cut to the budget; every example carries the weight of its batch. What a short last batch lacks
    is filled with unused examples at weight 0. Masked examples count nothing, and are not returned.

    Example:
      >>> import jdss
      >>> gradients = jdss.DenseGradients(jnp.eye(6).at[4:].mul(3.0))
      >>> jdss.per_batch(jdss.grad_match, 2)(gradients, 2).indices
      Array([4, 5], dtype=int32)
    """
    batch_size = _checks.check_positive_int("batch_size", batch_size)

    def lifted(
        gradients: Any, budget: int, *, mask: Any = None, count: Any = None, **options: Any
    ) -> Subset:
        num_examples = _count_checked(gradients)
        budget, mask, count = check_places(budget, num_examples, mask, count)
        num_batches = -(-num_examples // batch_size)
        valid = jnp.pad(mask, (0, -num_examples % batch_size)).reshape(num_batches, batch_size)
        atoms: Any = num_batches
        if not _is_number(gradients):
            masked = jax.tree.map(
                lambda leaf: jnp.where(mask.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, 0), gradients
            )
            atoms = sum_consecutive(masked, batch_size)
        num_chosen, of_count = -(-budget // batch_size), -(-count // batch_size)
        batches = select(atoms, num_chosen, mask=valid.any(axis=1), count=of_count, **options)
        # Every place of a chosen batch, without those that are padding or masked: a stable sort
        # moves these behind the others, and unused examples take their place.
        members = batches.indices[:, None] * batch_size + jnp.arange(batch_size)
        weights = jnp.broadcast_to(batches.weights[:, None], members.shape).ravel()
        by_method = jnp.arange(num_chosen) < batches.num_selected
        real = valid[batches.indices].ravel()
        chosen = real & jnp.repeat(by_method, batch_size)
        order = jnp.argsort(jnp.where(chosen, 0, jnp.where(real, 1, 2)), stable=True)[:budget]
        first = jnp.where(real, members.ravel(), 0)[order]
        num_real = jnp.minimum(real.sum(), budget)
        return Subset(
            indices=fill_places(first, num_real, mask),
            weights=jnp.where(
                jnp.arange(budget) < jnp.minimum(num_real, count), weights[order], 0.0
            ),
            num_selected=jnp.minimum(chosen.sum(), count).astype(jnp.int32),
        )

    return lifted


def per_class(select: Select, labels: Any, num_classes: int) -> Select:
    """Lifts a selection method to one independent problem for each class.

    The problems are of one padded shape and compiled once; several devices share the classes.
    Places are shared out in proportion to the class sizes, by the largest remainder, and at least
    one to a class that has an example where the budget allows.

    Args:
      select: a method of the protocol.
      labels: int[n], concrete class indices in 0..num_classes-1; others are refused.
      num_classes: the number of classes, at least 1.

    Returns:
      `lifted(gradients, budget, *, key=None, mask=None, class_options=None, **options)`, which
      passes `options` to every class, and of `class_options`, pytrees of arrays with a leading axis
      of `num_classes`, its own entry to each. `mask` must be concrete.

    Example:
      >>> import jdss
      >>> gradients = jdss.DenseGradients(jnp.eye(6))
      >>> jdss.per_class(jdss.grad_match, [0, 0, 0, 0, 1, 1], 2)(gradients, 3).indices
      Array([0, 1, 4], dtype=int32)
    """
    if not _checks.is_concrete(labels):
        raise TypeError("labels must be concrete: the shares of the classes are static")
    labels = np.asarray(labels)
    _checks.check_labels(labels, num_examples=labels.size, num_classes=num_classes)

    def lifted(
        gradients: Gradients | int,
        budget: int,
        *,
        key: jax.Array | None = None,
        mask: Any = None,
        count: Any = None,
        class_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Subset:
        if count is not None:
            raise TypeError("count is not taken by a per-class selection: give a smaller budget")
        if (num_examples := _count_checked(gradients)) != len(labels):
            raise ValueError(
                f"labels and gradients must have one common length; labels has {len(labels)}, "
                f"gradients has {num_examples}"
            )
        if not _checks.is_concrete(mask):
            raise TypeError("mask must be concrete in a per-class selection")
        with jax.ensure_compile_time_eval():  # the gradients, and so the caller, may be traced
            allowed = np.asarray(_checks.check_mask(mask, num_examples))
        budget = _checks.check_positive_int("budget", budget, int(allowed.sum()))
        sizes = np.bincount(labels[allowed], minlength=num_classes)
        shares, width = class_shares(sizes, budget), int(sizes.max())
        members = np.zeros((num_classes, width), np.int32)
        for label, size in enumerate(sizes):
            members[label, :size] = np.flatnonzero(allowed & (labels == label))
        is_filled = np.arange(shares.max()) < shares[:, None]
        static, traced = _split_options(options)
        own = {
            "members": jnp.asarray(members),
            "mask": jnp.asarray(np.arange(width) < sizes[:, None]),
            "count": jnp.asarray(shares, jnp.int32),
            "key": None if key is None else jax.random.split(key, num_classes),
            **(class_options or {}),
        }
        return _select_in_classes(
            _Method(select, int(shares.max()), static),
            None if _is_number(gradients) else gradients,
            traced,
            own,
            jnp.asarray(np.flatnonzero(is_filled), jnp.int32),
        )

    return lifted


def _is_number(gradients: Any) -> bool:
    return isinstance(gradients, (int, np.integer))


def _count_checked(gradients: Any) -> int:
    return count_examples(gradients) if _is_number(gradients) else check_gradients(gradients)


def _split_options(options: Mapping[str, Any]) -> tuple[tuple[tuple[str, Any], ...], dict]:
    """Python's numbers, which are static, as a method may check them; and arrays, traced."""
    static, traced = {}, {}
    for name, value in options.items():
        if isinstance(value, np.integer):
            static[name] = int(value)
        elif value is None or callable(value) or isinstance(value, (bool, int, float, str)):
            static[name] = value
        else:
            traced[name] = value
            _checks.check_finite(name, value)
    return tuple(sorted(static.items())), traced


class _Method(NamedTuple):
    """What is the same for all classes, and static."""

    select: Select
    budget: int
    options: tuple[tuple[str, Any], ...]


def _select_in_classes(
    method: _Method,
    gradients: Any,  # None where only their number matters
    options: dict[str, Any],
    own: dict[str, Any],  # what differs from class to class, with a leading axis for the class
    places: jax.Array,  # int32[k], those that count, among the places of all classes
) -> Subset:
    devices, num_classes = jax.device_count(), len(own["members"])
    if devices == 1 or num_classes == 1 or not _checks.is_concrete(gradients, options, own):
        return _on_one_device(method, gradients, options, own, places)
    # Every device takes an equal share of the classes; those left over are filled up with some
    # that are there already, whose result is thrown away.
    padded = np.resize(np.arange(num_classes), num_classes + -num_classes % devices)
    own = jax.tree.map(lambda leaf: leaf[padded], own)
    subset = _on_all_devices(method)(gradients, options, own, places)
    # Back to one device, where the gradients are.
    return jax.device_put(subset, jax.local_devices()[0])


@lru_cache(maxsize=32)
def _on_all_devices(method: _Method) -> Callable[..., Subset]:
    def on_device(device: Any, gradients: Any, options: Any, own: Any, places: Any) -> Subset:
        share = len(own["members"]) // jax.lax.axis_size(parallel.AXIS)
        own = jax.tree.map(
            lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, device * share, share), own
        )
        subset = _class_by_class(method, gradients, options, own)
        return _join(jax.lax.all_gather(subset, parallel.AXIS, tiled=True), places)

    return parallel.parallel(on_device)


@partial(jit, static_argnames="method")
def _on_one_device(
    method: _Method, gradients: Any, options: Any, own: Any, places: jax.Array
) -> Subset:
    return _join(_class_by_class(method, gradients, options, own), places)


def _class_by_class(method: _Method, gradients: Any, options: Any, own: Any) -> Subset:
    """A `Subset` with a leading axis for the class."""

    def select_in_class(own: dict[str, Any]) -> Subset:
        members = own.pop("members")
        rows = len(members) if gradients is None else gradients.take(members)
        subset = method.select(rows, method.budget, **dict(method.options), **options, **own)
        return Subset(members[subset.indices], subset.weights, subset.num_selected)

    # One class after another on a CPU, where a batched while loop would compute both sides of
    # every branch and copy its whole state each step; several at once on an accelerator.
    if jax.default_backend() == "cpu":
        return jax.lax.map(select_in_class, own)
    num_classes, members = own["members"].shape
    at_once = classes_at_once(num_classes, members, method.budget, gradients)
    return jax.lax.map(select_in_class, own, batch_size=None if at_once == 1 else at_once)


def classes_at_once(num_classes: int, members: int, budget: int, gradients: Any) -> int:
    """How many classes an accelerator works on together: what 2 GiB hold, and at least one."""
    # Each: rows of its m members, m × m similarities (CRAIG), two float64[k, k] (GRAD-MATCH).
    row = sum(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(gradients))
    similarities = members if members <= 16_384 else 0
    needed = 4 * members * (row + similarities) + 16 * budget**2
    return max(1, min(num_classes, (2 << 30) // max(needed, 1)))


def _join(subset: Subset, places: jax.Array) -> Subset:
    """The classes' places in one `Subset`, those that the method itself filled first."""
    width = subset.indices.shape[1]
    filled = (jnp.arange(width) < subset.num_selected[:, None]).ravel()[places]
    order = places[jnp.argsort(~filled, stable=True)]
    return Subset(
        indices=subset.indices.ravel()[order],
        weights=subset.weights.ravel()[order],
        num_selected=filled.sum(dtype=jnp.int32),
    )
