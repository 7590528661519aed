"""What selection returns, and lifting a selection method to classes and to mini-batches.

A selection method is a function of the protocol

    select(gradients, budget, *, key=None, mask=None, count=None, **options) -> Subset

`budget` is static; `mask` bool[n] marks padding with False; `count` int32, at most `budget` and
possibly traced, is the number of places to fill. Places from `count` on hold weight 0.
"""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdss import _checks, parallel
from jdss.gradients import Gradients, check_gradients, count_examples
from jdss.subset_files import read_arrays, write_arrays

Select = Callable[..., "Subset"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Subset:
    """A weighted subset of n examples.

    Attributes:
      indices: int32[k], the chosen examples: distinct where the budget allows, never padding.
      weights: float32[k], finite and non-negative, one for each index.
      num_selected: int32[], how many places the method itself filled. They come first; the
        remaining places were filled up as the method's docstring says.

    Example:
      >>> subset = Subset(jnp.array([7, 2]), jnp.array([3.0, 1.5]), jnp.int32(2))
      >>> subset.weights.sum()
      Array(4.5, dtype=float32)
    """

    indices: jax.Array
    weights: jax.Array
    num_selected: jax.Array

    def tolist(self) -> list[int]:
        """The examples of positive weight as Python's ints, such as PyTorch's data sets take.

        Example:
          >>> Subset(jnp.array([7, 2, 5]), jnp.array([3.0, 0.0, 1.0]), jnp.int32(2)).tolist()
          [7, 5]
        """
        found: list[int] = np.asarray(self.indices)[np.asarray(self.weights) > 0].tolist()
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it to a .npz file, in the place of one that is there (see `write_arrays`).

        Example:
          >>> import tempfile
          >>> path = tempfile.mkdtemp() + "/subset.npz"
          >>> Subset(jnp.array([7, 3]), jnp.array([1.0, 2.0]), jnp.int32(2)).save(path)
          >>> Subset.load(path).indices
          Array([7, 3], dtype=int32)
        """
        write_arrays(
            path, np.asarray(self.indices), np.asarray(self.weights), int(self.num_selected)
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Subset":
        """Reads what `save` or `jdss select` wrote (see `read_arrays`)."""
        indices, weights, num_selected = read_arrays(path)
        return cls(jnp.asarray(indices), jnp.asarray(weights), jnp.int32(num_selected))


def fill_places(
    chosen: jax.Array,
    num_selected: jax.Array,
    num_examples: int,
    *,
    mask: jax.Array | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """Replaces the places of `chosen` from `num_selected` on by distinct unused examples.

    Args:
      chosen: int32[k], of which the first `num_selected` are distinct examples.
      num_selected: int32[], how many places to keep.
      num_examples: n.
      mask: bool[n], False for examples that may not be used. None allows all.
      key: where given, the unused examples are drawn at random; otherwise the lowest come first.

    Returns:
      int32[k]. Where fewer than k examples are allowed, all of them are there and then repeat.
    """
    mask = jnp.ones(num_examples, bool) if mask is None else mask
    places = jnp.arange(len(chosen))
    kept = places < num_selected
    used = jnp.zeros(num_examples, bool).at[chosen].max(kept)
    preference = (
        jnp.arange(num_examples) if key is None else jax.random.permutation(key, num_examples)
    )
    # Unused examples first, then used ones (for when they must repeat), never the padding.
    rank = jnp.where(used, num_examples, 0) + jnp.where(mask, 0, 2 * num_examples) + preference
    unused_first = jnp.argsort(rank)
    refill = unused_first[(places - num_selected) % jnp.maximum(mask.sum(), 1)]
    return jnp.where(kept, chosen, refill).astype(jnp.int32)


def class_shares(class_sizes: np.ndarray, budget: int) -> np.ndarray:
    """Divides a budget among classes in proportion to their sizes, by the largest remainder.

    Every class that has an example gets at least one place where the budget allows, no class
    gets more than it has, and the shares sum to the budget exactly. Where the budget is smaller
    than the number of classes that have an example, the largest classes get one each.

    Args:
      class_sizes: int[c], the number of examples in each class.
      budget: places in all, in 1..sum(class_sizes).

    Returns:
      int[c], the places of each class.

    Example:
      >>> class_shares(np.array([50, 30, 1, 0]), 8)
      array([4, 3, 1, 0])
    """
    class_sizes = np.asarray(class_sizes, np.int64)
    total = int(class_sizes.sum())
    budget = _checks.check_budget(budget, total)
    present = class_sizes > 0
    if budget < present.sum():
        largest_first = np.argsort(-class_sizes, kind="stable")
        shares = np.zeros_like(class_sizes)
        shares[largest_first[:budget]] = 1
        return shares
    # A class's quota is budget · size / total. In whole multiples of 1 / total the remainders are
    # exact, so that equal remainders are equal, and the lowest class comes first.
    quotas = budget * class_sizes
    shares = np.maximum(quotas // total, present)
    never = np.iinfo(np.int64).max
    # The places still missing go, one each, to the largest remainders; where the guaranteed
    # single places overshot, places are taken back from the smallest remainders.
    while shares.sum() != budget:
        missing = budget - shares.sum()
        remainders = quotas - shares * total
        if missing > 0:
            remainders[shares >= class_sizes] = -never
            order = np.argsort(-remainders, kind="stable")
            open_classes = int((shares < class_sizes).sum())
            shares[order[: min(missing, open_classes)]] += 1
        else:
            remainders[shares <= 1] = never
            shares[np.argmin(remainders)] -= 1
    return shares


def per_class(select: Select, labels: Any, num_classes: int) -> Select:
    """Lifts a selection method to one independent problem for each class.

    The classes' problems are small and of one padded shape, so the method is compiled once for
    all of them; where there are several devices, the classes are spread over them. Shares are
    proportional to the class sizes, by the largest remainder; a class that has an example gets at
    least one place where the budget allows; the places sum to the budget exactly (see
    `class_shares`).

    Args:
      select: a method of the protocol.
      labels: int[n], concrete class indices in 0..num_classes-1.
      num_classes: the number of classes, at least 1.

    Returns:
      `lifted(gradients, budget, *, key=None, mask=None, class_options=None, **options)`, a method
      of the protocol but for `count`, which it refuses. `options` are passed to `select` for
      every class; `class_options` maps option names to pytrees of arrays with a leading axis of
      `num_classes`, of which each class gets its own entry. `mask` must be concrete.

    Raises:
      TypeError, ValueError: if the labels are traced, are not integers, are outside
        0..num_classes-1, or are not as many as the gradients.

    Example:
      >>> import jdss
      >>> gradients = jdss.DenseGradients(jnp.eye(6))
      >>> subset = jdss.per_class(jdss.grad_match, [0, 0, 0, 0, 1, 1], 2)(gradients, 3)
      >>> subset.indices
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
        mask: jax.Array | None = None,
        count: jax.Array | None = None,
        class_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Subset:
        if count is not None:
            raise TypeError("count is not taken by a per-class selection: give a smaller budget")
        rows = None if isinstance(gradients, (int, np.integer)) else gradients
        num_examples = count_examples(gradients) if rows is None else check_gradients(rows)
        if num_examples != len(labels):
            raise ValueError(
                f"labels and gradients must have one common length; labels has {len(labels)}, "
                f"gradients has {num_examples}"
            )
        if not _checks.is_concrete(mask):
            raise TypeError("mask must be concrete in a per-class selection")
        allowed = np.ones(num_examples, bool)
        if mask is not None:
            with jax.ensure_compile_time_eval():  # the gradients, and so the caller, may be traced
                allowed = np.asarray(_checks.check_mask(mask, num_examples))
        budget = _checks.check_budget(budget, int(allowed.sum()))
        sizes = np.bincount(labels[allowed], minlength=num_classes)
        shares = class_shares(sizes, budget)
        width = int(sizes.max())
        members = np.zeros((num_classes, width), np.int32)
        for label in range(num_classes):
            members[label, : sizes[label]] = np.flatnonzero(allowed & (labels == label))
        static, traced = _split_options(options)
        subset = _select_in_classes(
            _Method(select, int(shares.max()), static),
            rows,
            traced,
            _Classes(
                members=jnp.asarray(members),
                mask=jnp.asarray(np.arange(width) < sizes[:, None]),
                counts=jnp.asarray(shares, jnp.int32),
                keys=None if key is None else jax.random.split(key, num_classes),
                options=dict(class_options or {}),
            ),
        )
        places = np.flatnonzero(np.arange(shares.max()) < shares[:, None])
        if not _checks.is_concrete(subset):
            return _join(subset, places, jnp)
        # By NumPy: a program for so little would take a second to compile.
        joined = _join(jax.tree.map(np.asarray, subset), places, np)
        return jax.tree.map(jnp.asarray, joined)

    return lifted


def _join(subset: Subset, places: Any, numpy: Any) -> Subset:
    """The classes' places in one `Subset`, those that the method itself filled first.

    Computed by `numpy` or `jax.numpy`, which is given.
    """
    width = subset.indices.shape[1]
    filled = (numpy.arange(width) < subset.num_selected[:, None]).ravel()[places]
    order = numpy.asarray(places)[numpy.argsort(~filled, stable=True)]
    return Subset(
        indices=subset.indices.ravel()[order],
        weights=subset.weights.ravel()[order],
        num_selected=filled.sum(dtype=numpy.int32),
    )


def _split_options(options: Mapping[str, Any]) -> tuple[tuple[tuple[str, Any], ...], dict]:
    """Options that are constants (static) and those that are values in the program (traced).

    Python numbers are constants, so that a method sees them as it would outside of a lifting, and
    can check them and let them decide on shapes. Arrays are values: what changes from one call to
    the next, such as a learning rate, is given as one.
    """
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


class _Classes(NamedTuple):
    """What differs from class to class; every leaf has a leading axis for the class."""

    members: jax.Array  # int32[c, m], the examples of each class, padded
    mask: jax.Array  # bool[c, m], False for padding
    counts: jax.Array  # int32[c], places of each class
    keys: jax.Array | None  # [c] keys
    options: dict[str, Any]


class _Method(NamedTuple):
    """What is the same for all classes, and static."""

    select: Select
    budget: int
    options: tuple[tuple[str, Any], ...]


def _select_in_classes(
    method: _Method,
    gradients: Gradients | None,  # None where only their number matters
    options: dict[str, Any],
    classes: _Classes,
) -> Subset:
    """A `Subset` with a leading axis for the class."""
    devices, num_classes = parallel.num_devices(), len(classes.members)
    if devices == 1 or num_classes == 1 or not _checks.is_concrete(gradients, options, classes):
        return _on_one_device(method, gradients, options, classes)
    # Every device takes an equal share of the classes; those left over are filled up with some
    # that are there already, whose result is thrown away.
    padded = np.resize(np.arange(num_classes), num_classes + -num_classes % devices)
    classes = jax.tree.map(lambda leaf: leaf[padded], classes)
    subset = _on_all_devices(method)(gradients, options, classes)
    # Back to one device, where the gradients are.
    subset = jax.device_put(subset, jax.local_devices()[0])
    return jax.tree.map(lambda leaf: leaf[:num_classes], subset)


@lru_cache(maxsize=32)
def _on_all_devices(method: _Method) -> Callable[..., Subset]:
    def on_device(
        device: jax.Array, gradients: Gradients | None, options: dict[str, Any], classes: _Classes
    ) -> Subset:
        share = len(classes.members) // jax.lax.axis_size(parallel.AXIS)
        own = jax.tree.map(
            lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, device * share, share), classes
        )
        subset = _class_by_class(method, gradients, options, own)
        return jax.lax.all_gather(subset, parallel.AXIS, tiled=True)

    return parallel.parallel(on_device)


def _class_by_class(
    method: _Method, gradients: Gradients | None, options: dict[str, Any], classes: _Classes
) -> Subset:
    def select_in_class(own: _Classes) -> Subset:
        rows = len(own.members) if gradients is None else gradients.take(own.members)
        subset = method.select(
            rows,
            method.budget,
            key=own.keys,
            mask=own.mask,
            count=own.counts,
            **dict(method.options),
            **options,
            **own.options,
        )
        return Subset(own.members[subset.indices], subset.weights, subset.num_selected)

    # One class after another on a CPU, where a batched while loop would compute both sides of
    # every branch and copy its whole state each step; several at once on an accelerator.
    at_once = 1
    if jax.default_backend() != "cpu":
        num_classes, members = classes.members.shape
        at_once = classes_at_once(num_classes, members, method.budget, gradients)
    if at_once == 1:
        return jax.lax.map(select_in_class, classes)
    return jax.lax.map(select_in_class, classes, batch_size=at_once)


def classes_at_once(
    num_classes: int, members: int, budget: int, gradients: Gradients | None
) -> int:
    """How many classes an accelerator works on together: what 2 GiB hold, and at least one.

    Of each it holds the rows of its m members, two float64[k, k] (GRAD-MATCH) and, up to as many as
    a method stores, m × m similarities (CRAIG).
    """
    row = sum(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(gradients))
    similarities = members if members <= 16_384 else 0
    needed = 4 * members * (row + similarities) + 16 * budget**2
    return max(1, min(num_classes, (2 << 30) // max(needed, 1)))


_on_one_device = jax.jit(_class_by_class, static_argnames="method")
