"""Timing sides that live in processes of their own, in turns."""

import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any


def in_turns(case: str, sides: Sequence[str], *, repeats: int) -> dict[str, dict[str, Any]]:
    """Runs every side of a case in turns, so that what else the machine does falls on all alike.

    Args:
      case: of `training_peers.CASES`.
      sides: of `training_peers.SIDES`.
      repeats: how often each side is timed, after one run that is not.

    Returns:
      For every side: the `seconds` of each run, their `median`, the `cpu_seconds` of each run, and
      `first`, the first run's seconds, compilation included.
    """
    with ExitStack() as stack:
        peers: dict[str, Any] = {}
        for side in sides:
            command = [sys.executable, "-m", "experiments.benchmarks.training_peers", case, side]
            pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            peers[side] = stack.enter_context(subprocess.Popen(command, **pipes))
        found: dict[str, dict[str, Any]] = {}
        for side, peer in peers.items():
            found[side] = {"first": float(_answer(side, peer)[1]), "seconds": [], "cpu_seconds": []}
        for _ in range(repeats):
            for side, peer in peers.items():
                peer.stdin.write("run\n")
                peer.stdin.flush()
                seconds, cpu_seconds = map(float, _answer(side, peer))
                found[side]["seconds"].append(seconds)
                found[side]["cpu_seconds"].append(cpu_seconds)
        for peer in peers.values():
            peer.stdin.close()
    for result in found.values():
        result["median"] = statistics.median(result["seconds"])
    return found


def _answer(side: str, peer: Any) -> list[str]:
    line = peer.stdout.readline()
    if not line:
        raise RuntimeError(f"{side} ended with status {peer.wait()}")
    return line.split()
