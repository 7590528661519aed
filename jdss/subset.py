"""What selection returns, and how places are shared out and filled.

A selection method is a function of the protocol

    select(gradients, budget, *, key=None, mask=None, count=None, **options) -> Subset

`budget` is static; `mask` bool[n] marks padding with False; `count` int32, at most `budget` and
possibly traced, is the number of places to fill. Places from `count` on hold weight 0.
"""

import os
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdss import _checks

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
      >>> import tempfile
      >>> path = tempfile.mkdtemp() + "/subset.npz"
      >>> Subset(jnp.array([7, 2, 5]), jnp.array([3.0, 0.0, 1.5]), jnp.int32(2)).save(path)
      >>> Subset.load(path).tolist()
      [7, 5]
    """

    indices: jax.Array
    weights: jax.Array
    num_selected: jax.Array

    def tolist(self) -> list[int]:
        """The examples of positive weight as Python's ints, such as PyTorch's data sets take."""
        found: list[int] = np.asarray(self.indices)[np.asarray(self.weights) > 0].tolist()
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a .npz file; one that is there stays until all is written."""
        path = _check_suffix(path)
        # Beside it: only within one disk is a rename atomic.
        part = path.with_suffix(f".{os.getpid()}.part")
        try:
            with open(part, "wb") as file:
                np.savez(file, **jax.tree.map(np.asarray, vars(self)))
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Subset":
        """Reads what `save` or `jdss select` wrote, or any `indices` and `weights`, all selected.

        Raises:
          ValueError: for a file that holds no subset, and what is wrong with it.
        """
        path = _check_suffix(path)
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
        except FileNotFoundError:
            raise
        except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{path} is no .npz file of a subset: {error}") from error

        if missing := sorted({"indices", "weights"} - set(arrays)):
            raise ValueError(f"{path} must hold 'indices' and 'weights', it lacks {missing}")
        indices, weights = arrays["indices"], arrays["weights"]
        selected = arrays.get("num_selected", np.int32(indices.size))
        if wanted := _wanted(indices, weights, selected):
            raise ValueError(f"{path} must hold {wanted}")
        return cls(jnp.asarray(indices, jnp.int32), jnp.float32(weights), jnp.int32(selected))


def _check_suffix(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"path must end in .npz, got {path}")
    return path


def _wanted(indices: np.ndarray, weights: np.ndarray, selected: np.ndarray) -> str | None:
    """What a file's arrays should have been, where they are no subset."""
    shapes, types = (indices.shape, weights.shape), (indices.dtype, weights.dtype)
    if indices.ndim != 1 or shapes[0] != shapes[1] or not len(indices):
        return f"indices and weights of one shape (k,), got {shapes}"
    if types[0].kind not in "iu" or types[1].kind not in "iuf":
        return f"indices that are integers and weights that are numbers, got {types}"
    most, lowest, highest = np.iinfo(np.int32).max, indices.min(), indices.max()
    if lowest < 0 or highest > most:
        return f"indices in 0..{most}, got values in {lowest}..{highest}"
    if not ((weights >= 0) & (weights <= np.finfo(np.float32).max)).all():
        return "weights that are finite and non-negative in float32"
    if selected.ndim or selected.dtype.kind not in "iu" or not 0 <= selected <= len(indices):
        return f"num_selected as one integer in 0..{len(indices)}, got {selected}"
    return None


def check_places(
    budget: Any, num_examples: int, mask: Any, count: Any
) -> tuple[int, jax.Array, jax.Array]:
    """Checks and returns budget, mask bool[n] (all, if None) and count int32[] (all, if None)."""
    budget = _checks.check_positive_int("budget", budget, num_examples)
    return budget, _checks.check_mask(mask, num_examples), _checks.check_count(count, budget)


def fill_places(
    chosen: jax.Array, num_selected: jax.Array, mask: jax.Array, key: jax.Array | None = None
) -> jax.Array:
    """Replaces the places of `chosen` int32[k] from `num_selected` on by unused allowed examples.

    The lowest come first, or random ones by a key. Where fewer than k are allowed, they repeat.
    """
    num_examples, places = len(mask), jnp.arange(len(chosen))
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
    """Shares int[c] of a budget in 1..sum(class_sizes), in proportion, by the largest remainder.

    Every class that has an example gets at least one place where the budget allows; otherwise the
    largest classes get one each.
    """
    class_sizes = np.asarray(class_sizes, np.int64)
    total = int(class_sizes.sum())
    budget = _checks.check_positive_int("budget", budget, total)
    present = class_sizes > 0
    if budget < present.sum():
        shares = np.zeros_like(class_sizes)
        shares[np.argsort(-class_sizes, kind="stable")[:budget]] = 1
        return shares
    # A class's quota is budget · size / total. In whole multiples of 1 / total the remainders are
    # exact, so that equal remainders are equal, and the lowest class comes first.
    quotas = budget * class_sizes
    shares = np.maximum(quotas // total, present)
    never = np.iinfo(np.int64).max
    # The places still missing go, one each, to the largest remainders; where the guaranteed
    # single places overshot, places are taken back from the smallest remainders.
    while missing := budget - int(shares.sum()):
        remainders, is_open = quotas - shares * total, shares < class_sizes
        if missing > 0:
            order = np.argsort(-np.where(is_open, remainders, -never), kind="stable")
            shares[order[: min(missing, int(is_open.sum()))]] += 1
        else:
            shares[np.argmin(np.where(shares > 1, remainders, never))] -= 1
    return shares
