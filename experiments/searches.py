"""What the recipes `mnist`, `cifar10` and `cifar100` share: their command line and result files.

A search is a strategy, a pruner and a seed, and has a result file of its own. Each is made in a
process of its own, so that none finds memory, threads or programs that another has left. A run may
be cut anywhere: searches go on at their trials, and what has a result file is not done again.
"""

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flax import linen as nn

import jdss
from experiments import comparison, energy, figures, trainings
from experiments.compilations import count_compilations
from experiments.results import Result, as_read, environment, read_results, write_result
from jdss import keep_programs
from jdss.progress import progress_bar
from jdss.training.hyperparameters import DEFAULTS
from jdss.training.problem import make_problem
from jdss.training.train_on_subset import STEP

PRUNERS = ("none", "asha", "hyperband")


@dataclass(frozen=True)
class Scale:
    """How much of the paper's experiment is run; None is all images, and the paper's width."""

    images: int | None
    epochs: tuple[int, int]
    batch_sizes: tuple[int, ...]
    trials: int = 10
    width: int | None = None


def strategies(every: int, warm_start: float) -> dict[str, jdss.Selection]:
    """Full data, random subsets in their cheapest form, and the paper's three methods."""
    return {
        "full": jdss.Selection("full"),
        "uniform": jdss.Selection("uniform", every=1, warm_start=0.0),
        **{
            name: jdss.Selection(name, every=every, warm_start=warm_start)
            for name in ("craig", "glister", "grad_match")
        },
    }


@dataclass
class Run:
    """One search of a recipe: a strategy's name, a pruner, a seed, and the command line."""

    strategy: str
    pruner: str
    seed: int
    options: argparse.Namespace
    _known: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        pruner = "" if self.pruner == "none" else f"-{self.pruner}"
        return Path(self.options.out) / f"{self.strategy}{pruner}-seed{self.seed}.json"

    @property
    def study(self) -> dict[str, Any]:
        """Where `jdss.tune` keeps the search; Hyperband draws brackets from the study's name."""
        path = self.path.with_suffix(".db")
        path.parent.mkdir(parents=True, exist_ok=True)
        name = f"{self.options.recipe}-{self.options.scale}-{self.seed}"
        return {"storage": f"sqlite:///{path}", "study_name": name}

    def load(self, images: int | None) -> jdss.Dataset:
        """The data set, or its first images, at the search's expense."""
        start = time.perf_counter()
        data = jdss.load_dataset(self.options.recipe, data_dir=self.options.data_dir)
        self._known |= {"of": len(data.labels), "loading": time.perf_counter() - start}
        return data.head(images)

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Around the search: its programs, memory and energy."""
        resumed = self.path.with_suffix(".db").exists()
        keep_programs(self.path.parent / "compiled" / self.path.stem)
        with energy.measured() as spent, count_compilations() as programs:
            yield
        self._known |= {"energy": spent or None, "more": {"programs": vars(programs)}}
        status = Path("/proc/self/status")  # of this process alone; only Linux has it
        if status.exists() and not resumed:  # else it is not that of the whole search
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
            peak = 1024 * int(lines["VmHWM"].split()[0])
            self._known["more"]["process_peak_memory_bytes"] = peak

    def write(self, found: "jdss.TuneResult", data: jdss.Dataset, scale: Scale, model: str) -> None:
        """Writes the result file."""
        content = found.as_dict()
        (train, validation), ledger = found.search["examples"], content["ledger"]
        ledger["seconds"]["loading"] += self._known["loading"]
        ledger["total_seconds"] += self._known["loading"]
        ledger["energy"] = self._known["energy"]
        description = (
            f"{len(data.labels):,} of {self._known['of']:,} training images, {scale.epochs[0]} to "
            f"{scale.epochs[1]} epochs"
        )
        if scale.width is not None:
            description += f", width {scale.width} instead of 64"
        reduced = scale.images is not None or scale.width is not None
        sizes = {"train": train, "validation": validation, "test": len(data.test_labels)}
        write_result(
            self.path,
            content,
            seeds={"search": self.seed},
            scale={
                "name": self.options.scale,
                "reduced": reduced,
                "description": description,
            },
            dataset={"name": data.name, **sizes},
            model=model,
            **self._known["more"],
        )

    def retrain_again(self, model: Any, data: jdss.Dataset, augmentation: str = "none") -> None:
        """Retrains the winner with further seeds, which tell chance from merit.

        Two searches that chose the same hyper-parameters are retrained with the same seeds: once.
        """
        result = json.loads(self.path.read_text())
        done = result.setdefault("retrainings", [])
        left = sorted(set(range(1, self.options.retrainings)) - {one["seed"] for one in done})
        if not left or result["retraining"] is None:
            return
        values = result["best"]["hyperparameters"]
        trained = {name: value for name, value in values.items() if name in DEFAULTS}
        architecture = {name: value for name, value in values.items() if name not in DEFAULTS}
        network = model if isinstance(model, nn.Module) else model(**architecture)
        problem = make_problem(data, augmentation=augmentation)
        test = trainings.test_examples(problem, data)
        where = as_read(trainings.origin(environment()))
        with progress_bar(len(left), f"{self.path.stem}, retraining again") as bar:
            for seed in left:
                one = _of_another_search(self.path.parent, result, {**where, "seed": seed})
                if one is None:
                    full = trainings.FULL
                    one = trainings.train_once(problem, test, network, full, trained, seed)
                    kept = ("seed", "test_accuracy", "failure", "ledger")
                    one = {**where, **{name: one[name] for name in kept}}
                done.append(one)
                write_result(self.path, result)
                bar.advance(len(done))


def _of_another_search(out: Path, result: Result, wanted: Result) -> dict[str, Any] | None:
    """The retraining of that seed, commit and hardware, where another search here has it."""
    alike = [
        other
        for other in read_results(out)
        if all(other[name] == result[name] for name in ("model", "scale", "dataset"))
        and other["best"]["hyperparameters"] == result["best"]["hyperparameters"]
    ]
    known = (one for other in alike for one in other.get("retrainings", ()))
    return next((one for one in known if wanted.items() <= one.items()), None)


def main(
    recipe: str,
    description: str | None,
    scales: Mapping[str, Scale],
    known: Mapping[str, jdss.Selection],
    search: Callable[[Run], None],
    argv: Sequence[str] | None = None,
) -> None:
    """Reads the command line and makes every search that has no result file yet.

    `recipe` is the data set's name and that of the module in `experiments`, `known` are the
    strategies. `search` makes one search and writes its file, unless it is there, and retrains its
    winner.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--scale", choices=scales, default="laptop")
    parser.add_argument("--strategies", nargs="+", choices=known, default=list(known))
    parser.add_argument("--pruners", nargs="+", choices=PRUNERS, default=["none"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="one search each")
    parser.add_argument("--retrainings", type=int, default=1, help="of each winner")
    parser.add_argument("--data-dir", help="of tensorflow_datasets; default: TFDS_DATA_DIR")
    parser.add_argument("--out", type=Path, help=f"for results; default: runs/{recipe}-SCALE")
    parser.add_argument("--here", action="store_true", help="search in this process, no tables")
    options = parser.parse_args(argv)
    options.recipe = recipe
    options.out = options.out or Path(f"runs/{recipe}-{options.scale}")
    every = itertools.product(options.seeds, options.strategies, options.pruners)
    for seed, strategy, pruner in every:
        run = Run(strategy, pruner, seed, options)
        if finished(run, known[strategy], scales[options.scale]):
            continue
        if options.here:
            search(run)
        else:
            one = ["--strategies", strategy, "--pruners", pruner, "--seeds", str(seed), "--here"]
            run_module(f"experiments.{recipe}", [*argv, *one])
    if not options.here:
        results = read_results(options.out)
        print(comparison.comparison(results).markdown())
        print(comparison.ledger_table(results).markdown())
        print(*draw(results, options.out), sep="\n")


def finished(run: Run, selection: jdss.Selection, scale: Scale) -> bool:
    """Whether the result file is there, with as many retrainings as asked for.

    Raises:
      ValueError: where it is of another experiment.
    """
    if not run.path.exists():
        return False
    result = json.loads(run.path.read_text())
    strategy, search = result["strategy"], result["search"]
    settings = {
        "scale": (result["scale"]["name"], run.options.scale),
        "number of trials": (len(result["trials"]), scale.trials),
        "pruner": (search["pruner"]["name"], run.pruner),
        "step": (search.get("step"), STEP),
        "method": (strategy["name"], selection.method),
    }
    if selection.method != "full":
        settings["selection interval"] = (strategy["select_every"], selection.every)
        settings["warm start"] = (strategy["warm_start"], selection.warm_start)
    for name, (theirs, ours) in settings.items():
        if theirs != ours:
            raise ValueError(
                f"{run.path.name} is of an experiment with another {name}, {theirs} instead of "
                f"{ours}: take another --out"
            )
    return len(result.get("retrainings", ())) + 1 >= run.options.retrainings


def draw(results: Sequence[Result], out: Path) -> list[Path]:
    """The anytime curves, and where there is full data to compare with, the speedups."""
    names = {result["strategy"]["name"] for result in results}
    drawn = [*figures.anytime(results, out / "anytime")]
    if "full" in names and len(names) > 1:
        drawn += figures.speedups(results, out / "speedups")
    return drawn


def run_module(module: str, arguments: Sequence[str]) -> None:
    """Runs `python -m module` to its end, with this process's output.

    Ctrl-C and SIGTERM end it before they end this process, so that no search goes on unseen. To be
    called in the main thread.

    Raises:
      SystemExit: with its exit status, if that is not 0; after a signal with 128 and its number.
    """
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    told: list[int] = []
    started: list[subprocess.Popen[bytes]] = []

    def end(number: int, frame: object) -> None:  # raises nothing: a process may be starting
        told.append(number)
        for process in started:
            process.terminate()

    previous = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        command = [sys.executable, "-m", module, *arguments]
        started.append(subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}))
        if told:
            started[0].terminate()
        status = started[0].wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if told or status:
        raise SystemExit(128 + told[0] if told else status if status > 0 else 128 - status)
