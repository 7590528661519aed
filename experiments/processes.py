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

    Ctrl-C and SIGTERM end it before they end this process, so that no search goes on unseen. To be
    called in the main thread.

    Raises:
      SystemExit: with its exit status, if that is not 0; after a signal with 128 and its number.
    """
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    told: list[int] = []
    started: list[subprocess.Popen[bytes]] = []

    def end(number: int, frame: object) -> None:  # raises nothing: a process may be starting
        told.append(number)
        for process in started:
            process.terminate()

    previous = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments], env={**os.environ, "PYTHONPATH": path}
        )
        started.append(process)
        if told:
            process.terminate()
        status = process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if told:
        raise SystemExit(128 + told[0])
    if status != 0:
        raise SystemExit(status if status > 0 else 128 - status)
