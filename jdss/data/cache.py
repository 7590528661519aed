"""Decoded data sets, kept as memory-mapped arrays: a second load decodes nothing.

They lie in `$XDG_CACHE_HOME/jdss/data` (`~/.cache/jdss/data`), a directory for each data set and
place that it was prepared in, and may be removed at any time.
"""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_FORMAT = 1  # another number where what is kept changes


def manifest_of(source: Path) -> dict[str, Any]:
    """What tells whether the prepared files are those that were decoded: sizes and times of all."""
    files = {
        str(path.relative_to(source)): [path.stat().st_size, path.stat().st_mtime_ns]
        for path in sorted(source.rglob("*"))
        if path.is_file()
    }
    return {"format": _FORMAT, "source": str(source.resolve()), "files": files}


def read_cached(source: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Arrays by name, memory-mapped, and what was said of them; None where there are none."""
    directory = _directory(source)
    try:
        about = json.loads((directory / "about.json").read_text(encoding="utf-8"))
        if about["manifest"] != manifest_of(source):
            return None
        names = about["arrays"]
        return {name: np.load(directory / f"{name}.npy", mmap_mode="r") for name in names}, about
    except (OSError, ValueError, KeyError, TypeError):  # nothing, or something damaged
        return None


def write_cached(
    source: Path, arrays: Mapping[str, np.ndarray], manifest: Mapping[str, Any], **about: Any
) -> None:
    """Keeps arrays for `read_cached`; a disk that takes none is a warning.

    Args:
      source: the directory that they were decoded from.
      arrays: by name.
      manifest: of `manifest_of`, from before they were decoded.
      **about: what else there is to say, in JSON's types.
    """
    directory = _directory(source)
    part = directory.with_name(f"{directory.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        for name, array in arrays.items():
            np.save(part / f"{name}.npy", array, allow_pickle=False)
        text = json.dumps({"manifest": manifest, "arrays": list(arrays), **about})
        (part / "about.json").write_text(text, encoding="utf-8")
        shutil.rmtree(directory, ignore_errors=True)  # whoever reads it keeps what it has mapped
        part.rename(directory)
    except OSError as error:
        warnings.warn(
            f"the decoded data set is not kept in {directory} ({error}): it is decoded again next "
            "time",
            RuntimeWarning,
            stacklevel=3,
        )
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _directory(source: Path) -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    digest = hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:12]
    return Path(home).expanduser() / "jdss" / "data" / f"{source.name}-{digest}"
