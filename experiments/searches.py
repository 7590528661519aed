"""What the recipes `mnist`, `cifar10` and `cifar100` share: their command line and result files.

A search is a strategy, a pruner and a seed, and has a result file of its own. Each is made in a
process of its own, so that none finds memory, threads or programs that another has left. A run may
be cut anywhere: searches go on at their trials, and what has a result file is not done again.
"""

import argparse
import itertools
import json
import resource
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
from experiments.processes import run_module
from experiments.results import Result, as_read, environment, read_results, write_result
from jdss import keep_programs
from jdss.progress import progress_bar
from jdss.training.hyperparameters import DEFAULTS
from jdss.training.problem import make_problem
from jdss.training.train_on_subset import STEP

PRUNERS = ("none", "asha", "hyperband")


@dataclass(frozen=True)
class Scale:
    """How much of the paper's experiment is run.

    Attributes:
      images: of the training set; None takes all.
      epochs: the fewest and the most epochs.
      batch_sizes: to choose from.
      trials: a search.
      width: of the network, where it can be had narrower; None is the paper's.
    """

    images: int | None
    epochs: tuple[int, int]
    batch_sizes: tuple[int, ...]
    trials: int = 10
    width: int | None = None

    def describe(self, name: str, images: int, of: int) -> dict[str, Any]:
        """What result files say of it."""
        parts = [f"{images:,} of {of:,} training images"]
        parts += [f"{self.epochs[0]} to {self.epochs[1]} epochs"]
        parts += [] if self.width is None else [f"width {self.width} instead of 64"]
        reduced = self.images is not None or self.width is not None
        return {"name": name, "reduced": reduced, "description": ", ".join(parts)}


def strategies(every: int, warm_start: float) -> dict[str, jdss.Selection]:
    """Full data, random subsets in their cheapest form, and the paper's three methods."""
    schedule: dict[str, Any] = {"every": every, "warm_start": warm_start}
    return {
        "full": jdss.Selection("full"),
        "uniform": jdss.Selection("uniform", every=1, warm_start=0.0),
        "craig": jdss.Selection("craig", **schedule),
        "glister": jdss.Selection("glister", **schedule),
        "grad_match": jdss.Selection("grad_match", **schedule),
    }


@dataclass
class Run:
    """One search of a recipe.

    Attributes:
      strategy: its name.
      pruner: "none", "asha" or "hyperband".
      seed: of the search.
      options: the command line.
    """

    strategy: str
    pruner: str
    seed: int
    options: argparse.Namespace
    _seconds: dict[str, float] = field(default_factory=dict)
    _more: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return Path(self.options.out) / f"{self._name}.json"

    @property
    def _name(self) -> str:
        pruner = "" if self.pruner == "none" else f"-{self.pruner}"
        return f"{self.strategy}{pruner}-seed{self.seed}"

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
        self._more["of"] = len(data.labels)
        self._seconds["loading"] = time.perf_counter() - start
        return data.head(images)

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Around the search: its programs, memory and energy."""
        resumed = self.path.with_suffix(".db").exists()
        keep_programs(self.path.parent / "compiled" / self._name)
        with energy.measured() as spent, count_compilations() as programs:
            yield
        self._more |= {"programs": vars(programs), "energy": spent or None}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        status = Path("/proc/self/status")
        if status.exists():  # on Linux the other would hold what the parent process had, too
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
            peak = int(lines["VmHWM"].split()[0])
        if not resumed:  # else it is not that of the whole search
            peak = peak if sys.platform == "darwin" else 1024 * peak
            self._more["process_peak_memory_bytes"] = peak

    def write(
        self, found: "jdss.TuneResult", data: jdss.Dataset, scale: Scale, model_name: str
    ) -> None:
        """Writes the result file."""
        known = found.as_dict()
        train, validation = found.search["examples"]
        ledger = known["ledger"]
        ledger["seconds"]["loading"] += self._seconds.get("loading", 0.0)
        ledger["total_seconds"] += self._seconds.get("loading", 0.0)
        ledger["energy"] = self._more.pop("energy", None)
        images = len(data.labels)
        described = scale.describe(self.options.scale, images, self._more.pop("of", images))
        sizes = {"train": train, "validation": validation, "test": len(data.test_labels)}
        write_result(
            self.path,
            known,
            seeds={"search": self.seed},
            scale=described,
            dataset={"name": data.name, **sizes},
            model=model_name,
            **self._more,
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
        with progress_bar(len(left), f"{self._name}, retraining again") as bar:
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


def _of_another_search(
    out: Path, result: Result, wanted: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The retraining of that seed, commit and hardware, where another search here has it."""
    for other in read_results(out):
        same = all(other[name] == result[name] for name in ("model", "scale", "dataset"))
        if same and other["best"]["hyperparameters"] == result["best"]["hyperparameters"]:
            for one in other.get("retrainings", ()):
                if all(one.get(name) == value for name, value in wanted.items()):
                    return dict(one)
    return None


def main(
    recipe: str,
    description: str | None,
    scales: Mapping[str, Scale],
    known: Mapping[str, jdss.Selection],
    search: Callable[[Run], None],
    argv: Sequence[str] | None = None,
) -> None:
    """Reads the command line and makes every search that has no result file yet.

    Args:
      recipe: the data set's name, which is also that of the module in `experiments`.
      description: the module's.
      scales: by name.
      known: the strategies, by name.
      search: makes one search and writes its file, unless it is there, and retrains its winner.
      argv: the arguments; None means the command line's.
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
        report(options.out)


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


def report(out: Path) -> None:
    """Prints the tables and draws the figures, from the result files in a directory alone."""
    results = read_results(out)
    print(comparison.comparison(results).markdown())
    print(comparison.ledger_table(results).markdown())
    for path in draw(results, out):
        print(path)


def draw(results: Sequence[Result], out: Path) -> list[Path]:
    """The anytime curves, and where there is full data to compare with, the paper's figures."""
    drawn = [*figures.anytime(results, out / "anytime")]
    names = {result["strategy"]["name"] for result in results}
    if "full" in names:
        drawn += figures.accuracy_against_time(results, out / "accuracy_against_time")
    if "full" in names and len(names) > 1:
        drawn += figures.speedups(results, out / "speedups")
    return drawn
