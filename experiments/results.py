"""Result files: one run a JSON file, with what it found and where, committed, and read again.

Times are in seconds, energy in joules, accuracies are fractions of 1. They name no host, no user
and no absolute path, so that a result can be published as it is.
"""

import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

import jdss
from jdss._texts import hide_passwords

RESULTS = Path(__file__).parent / "results"
"""The committed ones."""

Result = Mapping[str, Any]

REQUIRED_KEYS = (
    *("command", "commit", "versions", "hardware"),
    *("seeds", "scale", "dataset", "strategy", "trials", "ledger"),
)
"""What every result file has."""

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "optuna", "numpy", "codecarbon")
_CHECKOUT = Path(__file__).resolve().parents[1]
# From the root with two or more components (so that "1/2" and "and/or" are not paths), also in a
# URL of a file or of SQLite.
_ABSOLUTE_PATH = re.compile(r"(?:(?<![\w.~:/-])|(?<=:///)|(?<=file://))/(?=[^\s'\"/]+/)[^\s'\",;]+")


def write_result(path: str | os.PathLike[str], result: Any, **more: Any) -> None:
    """Writes a result file.

    `result` is a `jdss.TuneResult` or a mapping; `more` is what else the file holds. With where it
    was made (if the result does not say) it has all `REQUIRED_KEYS`.
    """
    known = result.as_dict() if hasattr(result, "as_dict") else result
    content = {**environment(), **more, **known}
    if missing := [key for key in REQUIRED_KEYS if key not in content]:
        raise ValueError(f"result for {Path(path).name} lacks {', '.join(missing)}")
    write_json(Path(path), content)


def write_json(path: Path, content: Any) -> None:
    """Writes a file, whole or not at all; an earlier one stays until it is ready.

    Floats are kept to nine significant digits, which tell any two float32 values apart, and must be
    finite. Absolute paths inside texts are cut down to their last component.
    """
    text = json.dumps(plain(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def plain(value: Any, where: str = "") -> Any:
    """The JSON form of a value; `where` is its place in the result, for error messages."""
    if hasattr(value, "tolist"):  # NumPy and JAX, scalars and arrays
        value = value.tolist()
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}; a result holds finite numbers or None")
        return float(f"{value:.9g}")
    if isinstance(value, (str, os.PathLike)):
        return without_paths(os.fspath(value))
    if isinstance(value, Mapping):
        dot = f"{where}." if where else ""
        return {str(key): plain(item, f"{dot}{key}") for key, item in value.items()}
    if isinstance(value, Sequence):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise TypeError(f"{where} has no JSON form: {type(value).__name__}")


def environment() -> dict[str, Any]:
    """Where a run happens.

    The `command` as one would type it in the checkout; its `commit`, with "-dirty" where tracked
    files other than results differ, None outside a checkout; `versions`, None for what is not
    installed; `hardware`.
    """
    kinds = [device.device_kind for device in jax.local_devices()]
    return {
        "command": command(sys.orig_argv),
        "commit": commit(_CHECKOUT),
        "versions": {
            "python": platform.python_version(),
            **{package: installed_version(package) for package in _PACKAGES},
            # Of the code that runs, which a checkout may hold without having it installed.
            "jdss": jdss.__version__,
        },
        "hardware": {
            "platform": platform.platform(),
            "cpu": _cpu(),
            "cores": cores(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "jax_backend": jax.default_backend(),
            "devices": [{"kind": kind, "count": kinds.count(kind)} for kind in sorted(set(kinds))],
        },
    }


def installed_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cores() -> int | None:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def command(argv: Sequence[str]) -> str:
    """The command line of a process (`sys.orig_argv`), without local paths and passwords."""

    def portable(word: str) -> str:
        option, equals, value = hide_passwords(word).rpartition("=")
        return option + equals + without_paths(value.removeprefix(f"{Path.cwd()}/"))

    return shlex.join(["python", *map(portable, argv[1:])])


def without_paths(text: str) -> str:
    """Cuts absolute paths down to ".../" and their last component.

    Example:
      >>> without_paths("read from /home/someone/tfds today")
      'read from .../tfds today'
    """
    if text.startswith("/"):  # it may hold spaces
        return f".../{Path(text).name}"
    return _ABSOLUTE_PATH.sub(lambda match: f".../{Path(match[0]).name}", text)


def commit(checkout: Path) -> str | None:
    """HEAD of a checkout, "-dirty" where its tracked files differ; results are not counted."""
    # Inside a git hook these variables name another repository.
    env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    git: Any = partial(subprocess.check_output, env=env, stderr=subprocess.DEVNULL, text=True)
    here = ["git", "-C", str(checkout)]
    try:
        root, head = git([*here, "rev-parse", "--show-toplevel", "HEAD"]).splitlines()
        code = ("--untracked-files=no", "--", ".", ":(exclude)experiments/results")
        changes = git([*here, "status", "--porcelain", *code])
    except (OSError, subprocess.SubprocessError):
        return None
    # An installed package may lie in the checkout of somebody else's project.
    return head + "-dirty" * bool(changes) if Path(root).resolve() == checkout else None


def _cpu() -> str | None:
    """Its name, and its family, model and stepping: several may be called the same."""
    path = Path("/proc/cpuinfo")
    first = path.read_text(encoding="utf-8").split("\n\n")[0] if path.exists() else ""
    fields = dict(re.findall(r"^(.*?)\s*: (.*)$", first, re.MULTILINE))
    known = [key for key in ("cpu family", "model", "stepping") if key in fields]
    numbers = ", ".join(f"{key} {fields[key]}" for key in known)
    name = fields.get("model name") or platform.processor() or None
    return f"{name} ({numbers})" if numbers else name


def read_results(directory: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads every `*.json` of a directory (not of those below it), sorted by file name."""
    if not Path(directory).is_dir():
        raise FileNotFoundError(f"no directory of results at {directory}")
    results = []
    for path in sorted(Path(directory).glob("*.json")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is not a readable result file: {error}") from error
        if missing := [key for key in REQUIRED_KEYS if key not in result]:
            raise ValueError(f"{path} is not a complete result file: it lacks {', '.join(missing)}")
        results.append(result)
    return results


def as_read(value: Any) -> Any:
    """A value as it reads back from a result file."""
    return json.loads(json.dumps(plain(value)))
