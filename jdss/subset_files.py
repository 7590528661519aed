"""Subsets in files: NumPy's .npz, with the arrays `indices`, `weights` and `num_selected`."""

import os
import zipfile
import zlib
from pathlib import Path

import numpy as np


def write_arrays(
    path: str | os.PathLike[str], indices: np.ndarray, weights: np.ndarray, num_selected: int
) -> None:
    """Writes a subset's arrays; until all is written, a file that was there stays as it is.

    Raises:
      ValueError: for a path that does not end in .npz.
      OSError: where it cannot be written.
    """
    path = _check_suffix(path)
    # Beside it and not in a directory for such files: only within one disk is a rename atomic.
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            np.savez(file, indices=indices, weights=weights, num_selected=np.int32(num_selected))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_arrays(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray, int]:
    """Reads what `write_arrays` wrote, or another's `indices` and `weights`, all of them selected.

    Returns:
      indices int32[k], weights float32[k], and how many places the method itself filled.

    Raises:
      FileNotFoundError: where there is no such file.
      ValueError: for a file that does not hold a subset, and what is wrong with it.
    """
    path = _check_suffix(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is no .npz file of a subset: {error}") from error
    if missing := {"indices", "weights"} - set(arrays):
        raise ValueError(f"{path} must hold 'indices' and 'weights', it lacks {sorted(missing)}")
    indices, weights = arrays["indices"], arrays["weights"]
    if indices.ndim != 1 or indices.shape != weights.shape or not len(indices):
        raise ValueError(
            f"{path} must hold indices and weights of one shape (k,), got {indices.shape} and "
            f"{weights.shape}"
        )
    if indices.dtype.kind not in "iu" or weights.dtype.kind not in "iuf":
        raise ValueError(
            f"{path} must hold indices that are integers and weights that are numbers, got "
            f"{indices.dtype} and {weights.dtype}"
        )
    most = np.iinfo(np.int32).max
    if indices.min() < 0 or indices.max() > most:
        raise ValueError(
            f"{path} must hold indices in 0..{most}, got values in {indices.min()}..{indices.max()}"
        )
    with np.errstate(over="ignore"):
        weights = weights.astype(np.float32)
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError(f"{path} must hold weights that are finite and non-negative in float32")
    selected = arrays.get("num_selected", np.int32(len(indices)))
    if selected.ndim or selected.dtype.kind not in "iu" or not 0 <= selected <= len(indices):
        raise ValueError(
            f"{path} must hold num_selected as one integer in 0..{len(indices)}, got {selected}"
        )
    return indices.astype(np.int32), weights, int(selected)


def _check_suffix(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"path must end in .npz, got {path}")
    return path
