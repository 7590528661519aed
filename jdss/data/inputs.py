"""Inputs as arrays: what people bring, checked once, and the types that it is stored in.

An example may have several inputs: then a tuple or a mapping of arrays stands in place of one, and
everything here holds for each of them.
"""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PART_BYTES = 1 << 20
"""About so many bytes of inputs are looked at together: in a cache, where they may be in files."""

_SCALES = 100  # between the columns of a table, from which on it is warned


def as_arrays(inputs: Any) -> Any:
    """An array, or a tuple or a mapping of arrays; a list is an array, a table its columns.

    An image of Pillow of one channel has an axis for it, as all others have.
    """
    if isinstance(inputs, Mapping):
        return {str(name): as_arrays(value) for name, value in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(map(as_arrays, inputs))
    if column_names(inputs) is not None:
        return _columns(inputs)
    array = np.asarray(inputs)
    # NumPy knows bfloat16 and its kin by name only.
    is_half = array.dtype.kind == "V" and jnp.issubdtype(array.dtype, jnp.floating)
    array = array.astype(np.float32) if is_half else array
    return array[..., None] if array.ndim == 2 and hasattr(inputs, "getbands") else array


def column_names(inputs: Any) -> Any:
    """What the columns of a table of pandas (or polars) are called, a tuple; None of anything else.

    Of several inputs a mapping, by their names or places.
    """
    if isinstance(inputs, Mapping | tuple):
        parts = inputs if isinstance(inputs, Mapping) else dict(enumerate(inputs))
        found = {key: column_names(part) for key, part in parts.items()}
        return found if any(names is not None for names in found.values()) else None
    is_table = hasattr(inputs, "columns") and hasattr(inputs, "dtypes")
    return tuple(inputs.columns) if is_table else None


def with_columns(name: str, inputs: Any, wanted: Any) -> Any:
    """Tables with the columns wanted, in their order; what has no names for them as it is.

    Raises ValueError, naming the argument, where one is missing.
    """
    if isinstance(inputs, Mapping | tuple):
        known = wanted if isinstance(wanted, dict) else {}
        if isinstance(inputs, Mapping):
            return {k: with_columns(name, part, known.get(k)) for k, part in inputs.items()}
        return tuple(with_columns(name, part, known.get(k)) for k, part in enumerate(inputs))
    own = column_names(inputs)
    if not isinstance(wanted, tuple) or own is None or own == wanted:
        return inputs
    if missing := [column for column in wanted if column not in own]:
        raise ValueError(
            f"{name} must have the columns of the data trained on, but has no {missing[0]!r}; give "
            "an array for columns without names"
        )
    return inputs[list(wanted)]


def _columns(table: Any) -> np.ndarray:
    """The columns of a table of pandas or polars, float32[n, d]."""
    array = np.zeros((len(table), len(table.columns)), np.float32)
    for place, name in enumerate(table.columns):
        column = np.asarray(table[name])
        if column.dtype.kind not in "biuf":
            raise TypeError(
                f"inputs must have columns of numbers, but column {name!r} is of dtype "
                f"{table[name].dtype}: leave it out, or encode it (pandas.get_dummies, "
                "pandas.factorize)"
            )
        array[:, place] = column
    return array


def check_inputs(inputs: Any) -> int:
    """Checks arrays of inputs as `jdss.make_examples`; returns the length n of their first axis."""
    leaves = named_leaves(inputs)
    if not leaves:
        raise ValueError("inputs must have at least one array, got none")
    for name, leaf in leaves.items():
        # One number an example is enough where there are other inputs.
        if leaf.ndim < (2 if len(leaves) == 1 else 1) or not len(leaf):
            hint = "; one example is inputs[:1]" if leaf.ndim == 1 else ""
            raise ValueError(
                f"{name} must have shape [n, …] with n at least 1, got {leaf.shape}{hint}"
            )
        _check_layout(name, leaf)
        _check_values(name, leaf)
    if len(set(map(len, leaves.values()))) > 1:
        got = ", ".join(f"{name} has {len(leaf)}" for name, leaf in leaves.items())
        raise ValueError(f"inputs must have one common length; {got}")
    return len(next(iter(leaves.values())))


def named_leaves(inputs: Any) -> dict[str, Any]:
    """Arrays by the names that errors call them: "inputs", or "inputs['pixels']" and the like."""
    leaves = jax.tree_util.tree_leaves_with_path(inputs)
    return {"inputs" + jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _check_layout(name: str, leaf: np.ndarray) -> None:
    if leaf.dtype == np.uint8 and leaf.ndim == 3:  # a convolution would take n for a height
        raise ValueError(
            f"{name} of uint8 must be images [n, h, w, channels] or [n, d], got {leaf.shape}; "
            "for grey images give images[..., None], for other numbers another type"
        )
    if leaf.ndim == 4 and leaf.shape[1] in {1, 3} and min(leaf.shape[2:]) > 4:
        sentence = (
            f"{name} must be images [n, h, w, channels], but {leaf.shape} looks like "
            f"[n, channels, h, w]: give {name}.transpose(0, 2, 3, 1)"
        )
        if leaf.dtype == np.uint8:  # would be normalised pixel row by pixel row
            raise ValueError(sentence)
        warnings.warn(sentence, UserWarning, stacklevel=3)


def _check_values(name: str, leaf: np.ndarray) -> None:
    if leaf.dtype.kind not in "fiub":
        raise TypeError(
            f"{name} must be uint8 images, floats, integers or bool, got dtype {leaf.dtype}"
        )
    for part in _in_parts(leaf):
        if leaf.dtype.kind == "f" and not np.isfinite(as_stored(part)).all():
            raise ValueError(f"{name} must be finite in float32, but some are NaN or infinite")
        is_wide = leaf.dtype.kind in "iu" and leaf.dtype.itemsize >= 4 and part.size
        if is_wide and (part.min() < -(2**31) or part.max() >= 2**31):
            raise ValueError(f"{name} must be integers that fit into int32")


def check_scale(inputs: Any, prefix: str = "") -> None:
    """Refuses what are surely images on the scale 0..255 but no uint8: nothing normalises them.

    They are surely images where there are three or four axes, of which two are of at least 8
    pixels, of one, three or four channels if any, and all values are in 0..255, some beyond 20.
    Integers without channels may be indices, as of words: of these it warns, as of tables whose
    columns are on very different scales.
    """
    for name, leaf in named_leaves(inputs).items():
        if leaf.dtype.kind not in "fiu" or leaf.dtype == np.uint8:
            continue
        if leaf.ndim == 2 and leaf.dtype.kind == "f" and not prefix:  # others are like those
            _warn_of_scales(name, leaf)
        channels = leaf.shape[3] if leaf.ndim == 4 else 1
        if leaf.ndim not in {3, 4} or min(leaf.shape[1:3]) < 8 or channels not in {1, 3, 4}:
            continue
        lows, highs = zip(*((part.min(), part.max()) for part in _in_parts(leaf)), strict=True)
        if min(lows) >= 0 and 20 < max(highs) <= 255:
            kind = "floats" if leaf.dtype.kind == "f" else "integers"
            sentence = (
                f"{prefix}{name} must be on a scale that a model learns from, but are {kind} in "
                "0..255, as of images that were not normalised: give them as uint8, which is "
                "normalised for you, or divide by 255 (or standardise) them; "
                "jdss.keep_on(data, as_is=True) says that they are meant so"
            )
            if kind == "floats" or leaf.ndim == 4:
                raise ValueError(sentence)
            warnings.warn(sentence, UserWarning, stacklevel=3)  # they may be indices


def _warn_of_scales(name: str, table: np.ndarray) -> None:
    mean = sum(part.sum(axis=0, dtype=np.float64) for part in _in_parts(table)) / len(table)
    squares = (((part - mean) ** 2).sum(axis=0) for part in _in_parts(table))
    spreads = np.sqrt(sum(squares) / len(table))
    least, most = np.where(spreads > 0, spreads, np.inf).argmin(), spreads.argmax()
    if spreads[most] > _SCALES * spreads[least] > 0:
        warnings.warn(
            f"{name} have columns of very different scales: the standard deviation of column "
            f"{least} is {spreads[least]:.1g} and that of column {most} {spreads[most]:.1g}, on "
            "which most networks train badly unless they begin with BatchNorm. They are left as "
            "they are: standardise them, as by (x - x.mean(0)) / x.std(0), and what is predicted "
            "by the same numbers",
            UserWarning,
            stacklevel=4,
        )


def _in_parts(leaf: np.ndarray) -> Iterator[np.ndarray]:
    rows = max(PART_BYTES * len(leaf) // max(leaf.nbytes, 1), 1)
    return (leaf[start : start + rows] for start in range(0, len(leaf), rows))


def as_stored(inputs: np.ndarray) -> np.ndarray:
    """Inputs of one of the types that examples have."""
    with np.errstate(over="ignore"):
        return inputs.astype(stored_type(inputs.dtype), copy=False)


def stored_type(dtype: np.dtype) -> np.dtype:
    """The type that inputs are stored in: uint8, float32, int32 or bool; others are refused."""
    if dtype.kind == "f":
        return np.dtype(np.float32)
    return np.dtype(np.int32) if dtype.kind in "iu" and dtype != np.uint8 else dtype


def kind_of(inputs: Any) -> str:
    """What one example's inputs are, in words: type and shape of each."""
    kinds = [
        f"{name.removeprefix('inputs')}: {stored_type(leaf.dtype)}{list(leaf.shape[1:])}"
        for name, leaf in named_leaves(inputs).items()
    ]
    return ", ".join(kinds).removeprefix(": ")
