"""Result files: one run a JSON file, written by `jdss.results`, committed, and read again here.

Times are in seconds, energy in joules, accuracies are fractions of 1.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jdss.results import REQUIRED_KEYS, environment, plain, write_result

__all__ = ["REQUIRED_KEYS", "Result", "as_read", "environment", "read_results", "write_result"]

RESULTS = Path(__file__).parent / "results"
"""The committed ones."""

Result = Mapping[str, Any]


def read_results(directory: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads every `*.json` of a directory (not of those below it), sorted by file name.

    Raises:
      FileNotFoundError: where there is no such directory.
      ValueError: for a file that cannot be read or is incomplete, naming it.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"no directory of results at {directory}")
    return [_read(path) for path in sorted(directory.glob("*.json"))]


def _read(path: Path) -> dict[str, Any]:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a readable result file: {error}") from error
    missing = [key for key in REQUIRED_KEYS if not isinstance(result, dict) or key not in result]
    if missing:
        raise ValueError(f"{path} is not a complete result file: it lacks {', '.join(missing)}")
    return result


def as_read(value: Any) -> Any:
    """A value as it reads back from a result file."""
    return json.loads(json.dumps(plain(value)))
