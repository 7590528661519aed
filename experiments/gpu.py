"""Everything that waits for a GPU, in one command: `python -m experiments.gpu --data-dir DIR`.

It runs in pieces of at most nine minutes, each a process of its own. A piece that is cut, by its
limit or with the machine, goes on where it was when the command is given again; what is finished
is not done again. Afterwards all results are in one JSON file, labelled by the hardware, which
`--unpack FILE` writes below `experiments/results` on any other machine.

The pieces, in the order of what is missed most: the tests for accelerators; benchmarks of selection
and of training; CIFAR-10 with ResNet-18 at the paper's scale, a strategy a piece; CIFAR-100 with
ResNet-50. `--scale smoke` rehearses all of them on a CPU in some minutes.
"""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import tyro

from experiments.results import RESULTS, environment

TESTS = (
    "tests/test_accelerators.py",
    "tests/test_many_devices.py",
    "tests/test_matching_pursuit.py",
)
STRATEGIES = ("full", "uniform", "milo", "grad_match", "craig", "glister")


def pieces(scale: str, out: Path) -> dict[str, list[str]]:
    """The commands, by name: what `python -m` is given."""
    smoke = scale == "smoke"
    benchmarks = "experiments.benchmarks"
    size = ["--scale", "tiny" if smoke else "full"]
    cases = ["--repeats", "1", "--only", "lenet-forward"] if smoke else []
    sides = [] if find_spec("torch") else ["--sides", "jdss"]  # which is for comparison
    found = {
        "tests": ["pytest", "-q", *TESTS],
        "selection": [f"{benchmarks}.selection", *size],
        "training": [f"{benchmarks}.training", *cases, *sides],
    }
    for name in ("selection", "training"):
        found[name] += ["--out", str(out / "benchmarks" / f"{name}.json")]
    for recipe in ("cifar10", "cifar100"):
        for strategy in ("uniform",) if smoke else STRATEGIES:
            what = ["--scale", scale, "--strategies", strategy]
            where = ["--out", str(out / f"{recipe}-{scale}")]
            found[f"{recipe}-{strategy}"] = [f"experiments.{recipe}", *what, *where]
    return found


def run(name: str, command: list[str], out: Path, minutes: float) -> bool:
    """One piece; whether it is finished. Its output goes to a log beside its results."""
    done = out / "done" / name
    if done.exists():
        return True
    done.parent.mkdir(parents=True, exist_ok=True)
    started, words = time.monotonic(), "finished"
    with open(out / f"{name}.log", "ab") as log:
        command = [sys.executable, "-m", *command]
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            if status := process.wait(60 * minutes):
                words = f"failed with status {status}"
        except subprocess.TimeoutExpired:
            words = "to be continued"
        finally:  # what it has started, too; its finished trials are kept
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    print(f"{name}: {words} after {time.monotonic() - started:.0f} s", flush=True)
    if words == "finished":
        done.touch()
    return words == "finished"


def pack(out: Path) -> Path:
    """All result files of a run in one, labelled by the hardware that they were made on."""
    packed = out / "packed.json"
    paths = sorted(path for path in out.rglob("*.json") if path != packed)
    files = {str(path.relative_to(out)): json.loads(path.read_text()) for path in paths}
    packed.write_text(json.dumps({**environment(), "files": files}, indent=1) + "\n", "utf-8")
    return packed


def unpacked(packed: Path, into: Path = RESULTS) -> list[Path]:
    """The files of a pack, below a directory that is named after the device."""
    content = json.loads(packed.read_text())
    device = content["hardware"]["devices"][0]["kind"].lower().replace(" ", "-")
    written = [into / device / name for name in content["files"]]
    for path, result in zip(written, content["files"].values(), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return written


def main(
    scale: Literal["smoke", "laptop", "paper"] = "paper",
    data_dir: Path | None = None,
    out: Path | None = None,
    only: tuple[str, ...] = (),
    minutes: float = 9.0,
    unpack: Path | None = None,
) -> None:
    """Everything that waits for a GPU, in pieces that go on where they were cut.

    Args:
      scale: of the recipes.
      data_dir: of tensorflow_datasets; by default TFDS_DATA_DIR.
      out: for results; by default runs/gpu-SCALE.
      only: pieces by name; by default all.
      minutes: at most, for each piece.
      unpack: only this: the results of a file to files.
    """
    if unpack:
        print(*unpacked(unpack), sep="\n")
        return
    out = out or Path(f"runs/gpu-{scale}")
    if data_dir:
        os.environ["TFDS_DATA_DIR"] = str(data_dir.absolute())
    known = pieces(scale, out)
    results = [run(name, known[name], out, minutes) for name in only or known]
    print(f"{sum(results)} of {len(results)} pieces are finished; results are in {pack(out)}")


if __name__ == "__main__":
    tyro.cli(main)
