"""What the recipes `mnist`, `cifar10` and `cifar100` share: their command line and result files.

A search is a strategy, a pruner and a seed, and has a result file of its own. Each is made in a
process of its own, so that none finds memory, threads or programs that another has left. A run may
be cut anywhere: searches go on at their trials, and what has a result file is not done again.
"""

import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, get_args

import tyro
from flax import linen as nn

import jdss
from experiments import comparison, energy, figures, trainings
from experiments.compilations import count_compilations
from experiments.recipe import Recipe, Scale
from experiments.results import Result, as_read, environment, read_results, write_result
from jdss.progress import progress_bar
from jdss.training.hyperparameters import DEFAULTS
from jdss.training.problem import make_problem
from jdss.training.schedule import make_schedule
from jdss.training.train_on_subset import STEP

EVERY, WARM_START = 5, 0.5
"""R, in epochs, and κ."""
STRATEGIES = {
    "full": jdss.Selection("full"),
    # Random subsets in their cheapest form.
    "uniform": jdss.Selection("uniform", every=1, warm_start=0.0),
    "milo": jdss.Selection("milo", every=1, warm_start=0.0),
    **{
        name: jdss.Selection(name, every=EVERY, warm_start=WARM_START)
        for name in ("craig", "glister", "grad_match")
    },
}
FRACTION = 0.05
Strategy = Literal["full", "uniform", "milo", "craig", "glister", "grad_match"]
Pruner = Literal["none", "asha", "hyperband"]


@dataclass(frozen=True)
class Options:
    """The command line: which searches of a recipe are made.

    Attributes:
      scale: of the recipe.
      strategies: how subsets are chosen.
      pruners: a search each.
      seeds: a search each.
      retrainings: of each winner.
      data_dir: of tensorflow_datasets; by default TFDS_DATA_DIR.
      out: for results; by default runs/DATASET-SCALE.
      here: search in this process, and make no tables.
    """

    scale: Literal["smoke", "laptop", "paper"] = "laptop"
    strategies: tuple[Strategy, ...] = get_args(Strategy)
    pruners: tuple[Pruner, ...] = ("none",)
    seeds: tuple[int, ...] = (0,)
    retrainings: int = 1
    data_dir: str | None = None
    out: Path | None = None
    here: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False


@dataclass(frozen=True)
class Run:
    """One search of a recipe: a strategy's name, a pruner, a seed, and the command line."""

    recipe: Recipe
    strategy: Strategy
    pruner: Pruner
    seed: int
    options: Options

    @property
    def scale(self) -> Scale:
        return self.recipe.scales[self.options.scale]

    @property
    def path(self) -> Path:
        pruner = "" if self.pruner == "none" else f"-{self.pruner}"
        out = self.options.out or Path(f"runs/{self.recipe.dataset}-{self.options.scale}")
        return out / f"{self.strategy}{pruner}-seed{self.seed}.json"

    def make(self) -> None:
        """Searches, unless there is a result file, and retrains the winner."""
        whole = self.recipe.load(self.options.data_dir)
        model, data = self.recipe.model(self.scale.width), whole.head(self.scale.images)
        if not self.path.exists():
            self.search(model, data, len(whole.labels))
        self.retrain_again(model, data)

    def search(self, model: Any, data: jdss.Dataset, of: int) -> None:
        """One search and its result file, with its programs, memory and energy."""
        recipe, scale, study = self.recipe, self.scale, self.path.with_suffix(".db")
        resumed = study.exists()
        study.parent.mkdir(parents=True, exist_ok=True)
        jdss.keep_programs(study.parent / "compiled" / study.stem)
        space = jdss.default_space(epochs=scale.epochs, batch_sizes=scale.batch_sizes)
        with energy.measured() as spent, count_compilations() as programs:
            found = jdss.tune(
                model,
                data,
                selection=STRATEGIES[self.strategy],
                fraction=FRACTION,
                trials=scale.trials,
                task=jdss.Task(augmentation=recipe.augmentation),
                search=jdss.Search(space={**space, **recipe.space}, pruner=self.pruner),
                seed=self.seed,
                storage=f"sqlite:///{study}",
                # Of which Hyperband draws its brackets: the same for all strategies.
                study_name=f"{recipe.dataset}-{self.options.scale}-{self.seed}",
            )
        content = found.as_dict()
        more: dict[str, Any] = {"programs": vars(programs)}
        train, validation = found.search["examples"]
        content["ledger"]["energy"] = spent or None
        status = Path("/proc/self/status")  # of this process alone; only Linux has it
        if status.exists() and not resumed:  # else it is not that of the whole search
            peak = status.read_text().split("VmHWM:")[1].split()[0]
            more["process_peak_memory_bytes"] = 1024 * int(peak)
        sizes = {"train": train, "validation": validation, "test": len(data.test_labels)}
        write_result(
            self.path,
            content,
            seeds={"search": self.seed},
            scale={"name": self.options.scale, **scale.describe(of, scale.budget)},
            dataset={"name": data.name, **sizes},
            model=recipe.network,
            **more,
        )

    def retrain_again(self, model: Any, data: jdss.Dataset) -> None:
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
        problem = make_problem(data, augmentation=self.recipe.augmentation)
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

    def is_finished(self) -> bool:
        """Whether the result file is there, with as many retrainings as asked for.

        One of another experiment is refused.
        """
        if not self.path.exists():
            return False
        result = json.loads(self.path.read_text())
        search, chosen = result["search"], result["strategy"]
        ours = make_schedule(STRATEGIES[self.strategy], FRACTION).describe()
        settings = {
            "scale": (result["scale"]["name"], self.options.scale),
            "number of trials": (len(result["trials"]), self.scale.trials),
            "pruner": (search["pruner"]["name"], self.pruner),
            "step": (search.get("step"), STEP),
            **{name: (chosen[name], ours[name]) for name in ("name", "select_every", "warm_start")},
        }
        for name, (found, wanted) in settings.items():
            if found != wanted:
                raise ValueError(
                    f"{self.path.name} is of an experiment with another {name}, {found} instead "
                    f"of {wanted}: take another --out"
                )
        return len(result.get("retrainings", ())) + 1 >= self.options.retrainings


def _of_another_search(out: Path, result: Result, wanted: Result) -> dict[str, Any] | None:
    """The retraining of that seed, commit and hardware, where another search here has it."""

    def trained(result: Result) -> list[Any]:
        known = [result[name] for name in ("model", "scale", "dataset")]
        return [*known, result["best"]["hyperparameters"]]

    alike = (other for other in read_results(out) if trained(other) == trained(result))
    known = (one for other in alike for one in other.get("retrainings", ()))
    return next((one for one in known if wanted.items() <= one.items()), None)


def main(recipe: Recipe, argv: Sequence[str] | None = None) -> None:
    """Reads the command line and makes every search that has no result file yet."""
    argv = list(sys.argv[1:] if argv is None else argv)
    options = tyro.cli(Options, args=argv)
    for seed, strategy, pruner in itertools.product(
        options.seeds, options.strategies, options.pruners
    ):
        run = Run(recipe, strategy, pruner, seed, options)
        if run.is_finished():
            continue
        if options.here:
            run.make()
        else:
            one = ["--strategies", strategy, "--pruners", pruner, "--seeds", str(seed), "--here"]
            run_module(f"experiments.{recipe.dataset}", [*argv, *one])
    if not options.here:
        out = Run(recipe, "full", "none", 0, options).path.parent
        results = read_results(out)
        print(comparison.comparison(results).markdown())
        print(comparison.ledger_table(results).markdown())
        print(*draw(results, out), sep="\n")


def draw(results: Sequence[Result], out: Path) -> list[Path]:
    """The anytime curves, and where there is full data to compare with, the speedups."""
    names = {result["strategy"]["name"] for result in results}
    drawn = [*figures.anytime(results, out / "anytime")]
    if "full" in names and len(names) > 1:
        drawn += figures.speedups(results, out / "speedups")
    return drawn


def run_module(module: str, arguments: Sequence[str]) -> None:
    """Runs `python -m module` to its end, and ends with it where its status is not 0.

    Ctrl-C and SIGTERM end it before they end this process, so that no search goes on unseen.
    """

    def end(number: int, frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    previous = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with subprocess.Popen([sys.executable, "-m", module, *arguments]) as process:
            try:
                status = process.wait()
            finally:
                process.terminate()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if status:
        raise SystemExit(status if status > 0 else 128 - status)
