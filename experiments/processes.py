"""Other Python processes, which end when this one is told to."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]


def run_module(module: str, arguments: Sequence[str]) -> None:
    """Runs `python -m module` to its end, with this process's output.

    Ctrl-C and SIGTERM reach it before they end this process, so that no search goes on unseen.

    Raises:
      SystemExit: with its exit status, if that is not 0.
    """
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    # As Ctrl-C does: the wait below ends, and what was started is ended too.
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with subprocess.Popen(
            [sys.executable, "-m", module, *arguments], env={**os.environ, "PYTHONPATH": path}
        ) as process:
            try:
                status = process.wait()
            except BaseException:
                process.terminate()
                process.wait()
                raise
    finally:
        signal.signal(signal.SIGTERM, previous)
    if status != 0:
        raise SystemExit(status if status > 0 else 128 - status)
