"""Functions of test modules, run in a Python of their own with as many devices as are asked for."""

import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
SECONDS = 300  # after which a process is taken to hang


def start(
    function: Callable[[], Mapping[str, Any]], path: Path, *, devices: int, before: str = ""
) -> subprocess.Popen[str]:
    """Starts a process that calls a function of a test module, and saves its arrays in a file.

    `before` is Python that runs first, when JAX has not been used yet.
    """
    module = Path(inspect.getfile(function)).stem
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{before}\n"
        f"import numpy, tests.{module}\n"
        f"numpy.savez({str(path)!r}, **tests.{module}.{function.__name__}())"
    )
    flags = f"--xla_force_host_platform_device_count={devices}" if devices > 1 else ""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    return subprocess.Popen(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, env=environment
    )


def read(process: subprocess.Popen[str], path: Path) -> dict[str, np.ndarray]:
    """The arrays, once the process has ended; its complaints where it failed."""
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, errors
    return dict(np.load(path))


def on_devices(
    function: Callable[[], Mapping[str, Any]], devices: Sequence[int], directory: Path
) -> list[dict[str, np.ndarray]]:
    """What a function of a test module gives on each of these numbers of devices."""
    paths = [directory / f"{number}.npz" for number in devices]
    processes = [
        start(function, path, devices=number) for number, path in zip(devices, paths, strict=True)
    ]
    try:
        return [read(process, path) for process, path in zip(processes, paths, strict=True)]
    finally:
        for process in processes:
            process.kill()
