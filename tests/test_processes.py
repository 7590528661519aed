"""What an experiment starts ends with it."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.processes import run_module

ROOT = Path(__file__).parents[1]


def test_the_status_of_a_failed_process_is_passed_on():
    run_module("compileall", ["-q", "no-such-file", "--help"])
    with pytest.raises(SystemExit, match="2"):
        run_module("compileall", ["--no-such-option"])


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_what_was_started_too(number):
    program = "from experiments.processes import run_module as r; r('http.server', ['0'])"
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        deadline = time.monotonic() + 30
        while not (started := children.read_text().split()) and time.monotonic() < deadline:
            time.sleep(0.05)
        (child,) = started
        time.sleep(0.5)  # until it waits
        process.send_signal(number)
        assert process.wait(timeout=30) != 0
        assert not Path(f"/proc/{child}").exists()
