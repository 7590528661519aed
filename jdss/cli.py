"""The command line: `jdss tune`, `jdss select` and `jdss report`.

Each command is the function of the same name; its options are the function's arguments. Nothing
of JAX is imported before a command runs, so that `--help` answers at once.

Exit status: 0 where all went well, 1 where a search failed (no trial was completed), 2 for a
mistake in what was typed or given, 130 after Ctrl-C.
"""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

FAILED, MISTAKE, INTERRUPTED = 1, 2, 130

app = typer.Typer(
    name="jdss",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Hyper-parameter tuning at a fraction of the cost, by data subset selection.

**jdss tune** searches with cheap trials on subsets and retrains the winner on everything.
**jdss select** picks a weighted subset of your own examples.
**jdss report** makes one HTML page of a search.

    jdss tune lenet digits --trials 10 --fraction 0.1
    jdss report sqlite:///search.db --study mine --out report.html

Exit status: 0 all went well, 1 the search failed, 2 a mistake in the arguments, 130 Ctrl-C.
Set JDSS_TRACEBACK=1 to see where an error comes from.
""",
)

_SEARCH, _PRUNING, _DATA, _SUBSETS, _KEEPING = (
    "The search",
    "Pruning",
    "Data and model",
    "Subsets",
    "What is kept and shown",
)


def _with_exit_status(command: Callable[..., None]) -> Callable[..., None]:
    """Turns what a command raises into one sentence and an exit status."""

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
        except KeyboardInterrupt:
            typer.echo("jdss: interrupted; with --storage, the same command goes on", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except typer.Exit:
            raise
        except Exception as error:
            if os.environ.get("JDSS_TRACEBACK"):
                raise
            status = _status_of(error)
            if status is None:
                raise  # a bug of ours: its traceback is what there is to say
            typer.echo(f"jdss: {_one_line(error)}", err=True)
            raise typer.Exit(status) from None

    return run


def _status_of(error: Exception) -> int | None:
    """1 for a search that failed, 2 for what the user can mend, None for anything else."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"SearchFailedError", "WorkerError", "TrainingDivergedError"}:
        return FAILED
    mistakes = (ValueError, TypeError, OSError, ImportError, LookupError)
    if isinstance(error, mistakes) or names & {"DatasetNotPreparedError", "StorageError"}:
        return MISTAKE
    return None


def _one_line(error: Exception) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split()) or type(error).__name__


def _option(help: str, panel: str, *flags: str, **settings: Any) -> Any:
    return typer.Option(*flags, help=help, rich_help_panel=panel, **settings)


@app.command()
@_with_exit_status
def tune(
    model: Annotated[
        str,
        typer.Argument(
            help="lenet, resnet18, resnet50, or `package.module:attribute`: a Flax module, a class "
            "that takes num_classes, or a function of architectural hyper-parameters."
        ),
    ],
    data: Annotated[
        str,
        typer.Argument(
            help="digits, mnist, cifar10, cifar100, or an .npz file with inputs and labels (and "
            "test_inputs and test_labels)."
        ),
    ],
    space: Annotated[
        str | None,
        _option(
            "A .json or .toml file of distributions, or `package.module:function` of a trial. "
            "Default: learning rate, momentum, optimizer, epochs and batch size.",
            _SEARCH,
        ),
    ] = None,
    trials: Annotated[int, _option("Trials in all, a resumed study's included.", _SEARCH)] = 10,
    sampler: Annotated[
        str,
        _option("tpe, random, grid, qmc, brute_force, gp, cmaes, nsgaii or nsgaiii.", _SEARCH),
    ] = "tpe",
    n_startup_trials: Annotated[
        int | None, _option("Trials drawn at random first. Default: two fifths.", _SEARCH)
    ] = None,
    sampler_options: Annotated[
        str | None, _option("For the sampler, in JSON, such as '{\"points\": 4}'.", _SEARCH)
    ] = None,
    enqueue: Annotated[
        list[str] | None,
        _option("Hyper-parameters to try first, in JSON; may be given several times.", _SEARCH),
    ] = None,
    timeout: Annotated[
        float | None, _option("Seconds after which no further trial begins.", _SEARCH)
    ] = None,
    callbacks: Annotated[
        list[str] | None,
        _option("`package.module:function` of a study and a trial, after each.", _SEARCH),
    ] = None,
    loss: Annotated[
        str,
        _option("cross_entropy, squared_error, or `package.module:attribute`.", _SEARCH),
    ] = "cross_entropy",
    metric: Annotated[
        str | None,
        _option(
            "accuracy, loss, r2, mean_squared_error, or `package.module:function` of outputs and "
            "labels. Default: the loss's own.",
            _SEARCH,
        ),
    ] = None,
    direction: Annotated[
        str | None, _option("maximize or minimize. Default: the metric's own.", _SEARCH)
    ] = None,
    workers: Annotated[
        int, _option("Processes that run trials; they need a --storage to share.", _SEARCH)
    ] = 1,
    seed: Annotated[int, _option("Decides on everything random.", _SEARCH)] = 0,
    pruner: Annotated[str, _option("none, asha, hyperband or median.", _PRUNING)] = "none",
    first_rung: Annotated[
        int, _option("The epoch at which trials first report to the pruner.", _PRUNING)
    ] = 1,
    reduction_factor: Annotated[
        int, _option("How many times later each next rung is.", _PRUNING)
    ] = 3,
    pruner_options: Annotated[str | None, _option("For the pruner, in JSON.", _PRUNING)] = None,
    selection: Annotated[
        str,
        _option(
            "grad_match, craig, glister, uniform, stratified, full, or `package.module:function`.",
            _SUBSETS,
        ),
    ] = "grad_match",
    fraction: Annotated[float, _option("The share of examples in a subset.", _SUBSETS)] = 0.05,
    select_every: Annotated[int, _option("Epochs between two selections.", _SUBSETS)] = 10,
    warm_start: Annotated[
        float, _option("The share of the epochs spent on all the data first.", _SUBSETS)
    ] = 0.5,
    lifting: Annotated[
        str | None, _option("all, per_class or per_batch. Default: the method's own.", _SUBSETS)
    ] = None,
    options: Annotated[str | None, _option("For the method, in JSON.", _SUBSETS)] = None,
    outer: Annotated[
        str,
        _option("training or validation: whose loss or gradient subsets are chosen for.", _SUBSETS),
    ] = "training",
    gradients: Annotated[
        str, _option("last_layer, or all: of all parameters, projected at random.", _SUBSETS)
    ] = "last_layer",
    projection_dimension: Annotated[
        int, _option("The numbers kept of each gradient of all parameters.", _SUBSETS)
    ] = 512,
    candidates: Annotated[
        float, _option("The share of examples that each selection chooses from.", _SUBSETS)
    ] = 1.0,
    validation: Annotated[
        str, _option("The share held out to score trials, or an .npz file.", _DATA)
    ] = "0.1",
    test: Annotated[
        str | None, _option("An .npz file, looked at once, after retraining.", _DATA)
    ] = None,
    augmentation: Annotated[str, _option("none or crop_flip.", _DATA)] = "none",
    optimizers: Annotated[
        str | None,
        _option("`package.module:mapping` from names to optimizer factories.", _DATA),
    ] = None,
    data_on: Annotated[
        str | None,
        _option("device, or host for more data than a device holds. Default: by size.", _DATA),
    ] = None,
    data_dir: Annotated[
        str | None, _option("Of tensorflow_datasets. Default: TFDS_DATA_DIR.", _DATA)
    ] = None,
    storage: Annotated[
        str | None,
        _option("sqlite:///search.db, search.log, postgresql://… Default: memory.", _KEEPING),
    ] = None,
    study_name: Annotated[
        str | None, _option("The study's name in the storage.", _KEEPING, "--study", "--study-name")
    ] = None,
    checkpoints: Annotated[
        str | None,
        _option("A directory from which a trial that was cut off goes on.", _KEEPING),
    ] = None,
    checkpoint_every: Annotated[
        float, _option("Seconds between two checkpoints of a trial.", _KEEPING)
    ] = 60.0,
    retrain: Annotated[bool, _option("Retrain the best on everything.", _KEEPING)] = True,
    save_to: Annotated[
        str | None, _option("A new directory for the retrained model.", _KEEPING)
    ] = None,
    out: Annotated[
        Path | None, _option("A .json file for the result: trials, ledger, versions.", _KEEPING)
    ] = None,
    progress: Annotated[bool, _option("Show progress bars.", _KEEPING)] = True,
) -> None:
    """Search for hyper-parameters on subsets, then retrain the best on everything.

    Interrupted? With --storage and --study, the same command goes on where it was; on another
    machine with the same storage, it joins.

        jdss tune lenet digits --fraction 0.1 --trials 10
        jdss tune lenet mnist --pruner asha --trials 40 --storage sqlite:///m.db --study m
        jdss tune my_models:build cifar10 --space space.toml --augmentation crop_flip
        jdss tune resnet18 mine.npz --metric loss --sampler random --out result.json

    A space.toml:

        learning_rate = {type = "float", low = 0.001, high = 0.3, log = true}
        epochs = {type = "int", low = 10, high = 20}
        optimizer = {type = "categorical", choices = ["sgd", "adam"]}
    """
    import jdss
    from jdss import _arguments as read

    if out is not None:
        read.check_place("--out", out)
    loaded = read.data(data, data_dir)
    result = jdss.tune(
        read.model(model, loaded),
        loaded,
        space=read.space(space),
        selection=read.named(selection),
        fraction=fraction,
        trials=trials,
        sampler=sampler,
        n_startup_trials=n_startup_trials,
        sampler_options=read.mapping("--sampler-options", sampler_options),
        pruner=pruner,
        first_rung=first_rung,
        reduction_factor=reduction_factor,
        pruner_options=read.mapping("--pruner-options", pruner_options),
        enqueue=[read.mapping("--enqueue", text) or {} for text in enqueue or ()],
        timeout=timeout,
        callbacks=[read.attribute(path) for path in callbacks or ()],
        loss=read.named(loss),
        metric=None if metric is None else read.named(metric),
        direction=direction,
        storage=storage,
        study_name=study_name,
        validation=read.validation(validation),
        test=read.examples("--test", test),
        select_every=select_every,
        warm_start=warm_start,
        lifting=lifting,
        options=read.mapping("--options", options),
        outer=outer,
        gradients=gradients,
        projection_dimension=projection_dimension,
        candidates=candidates,
        augmentation=augmentation,
        optimizers=jdss.OPTIMIZERS if optimizers is None else read.attribute(optimizers),
        workers=workers,
        checkpoints=checkpoints,
        checkpoint_every=checkpoint_every,
        retrain=retrain,
        save_to=save_to,
        data_on=data_on,
        data_dir=data_dir,
        seed=seed,
        progress=progress,
    )
    _print_result(result)  # first: it is there whatever becomes of the file
    if out is not None:
        read.write_result(out, result, data, model, seed)


def _print_result(result: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    metric = result.search["metric"]
    states = [trial["state"] for trial in result.trials]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    console = Console()
    table = Table(title=f"{len(states)} trials: {counts}", show_header=False)
    for name, value in result.best_hyperparameters.items():
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    table.add_section()
    table.add_row(f"validation {metric}", f"{result.best_value:.4g}")
    if result.retraining is not None and result.retraining.test_accuracy is not None:
        table.add_row("test accuracy after retraining", f"{result.retraining.test_accuracy:.4g}")
    elif result.retraining is not None and result.retraining.test_score is not None:
        table.add_row(f"test {metric} after retraining", f"{result.retraining.test_score:.4g}")
    table.add_section()
    for line, seconds in result.ledger.seconds.items():
        if seconds >= 0.05:
            table.add_row(f"{line} (s)", f"{seconds:.1f}")
    console.print(table)
    if result.failure is not None:
        typer.echo(f"jdss: {result.failure}", err=True)


@app.command()
@_with_exit_status
def select(
    file: Annotated[
        Path,
        typer.Argument(help="An .npz file with logits [n, c], features [n, d] and labels [n]."),
    ],
    out: Annotated[
        Path, typer.Option(help="A .npz or .json file for the indices and weights.")
    ] = Path("subset.npz"),
    method: Annotated[
        str, typer.Option(help="grad_match, craig, glister, uniform or stratified.")
    ] = "grad_match",
    fraction: Annotated[
        float | None, typer.Option(help="The share of examples to select. Default: 0.05.")
    ] = None,
    budget: Annotated[
        int | None, typer.Option(help="How many examples to select, in place of a share.")
    ] = None,
    lifting: Annotated[
        str | None, typer.Option(help="all, per_class or per_batch. Default: the method's own.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Examples in a batch, for per_batch.")] = 128,
    learning_rate: Annotated[
        float, typer.Option(help="Of the training that follows: the step of glister.")
    ] = 0.05,
    options: Annotated[str | None, typer.Option(help="For the method, in JSON.")] = None,
    seed: Annotated[int, typer.Option(help="Decides on everything random.")] = 0,
) -> None:
    """Pick a weighted subset by the gradients of a network's last layer.

    `features` are the inputs of the last dense layer, `logits` its outputs.

        jdss select layer.npz --fraction 0.1 --out subset.npz
        jdss select layer.npz --method craig --budget 500 --lifting per_class --out subset.json
    """
    import jdss
    from jdss import _arguments as read

    logits, features, labels = read.arrays(file, ("logits", "features", "labels"))
    if out.suffix not in (".npz", ".json"):
        raise ValueError(f"--out must end in .npz or .json, got {out}")
    subset = jdss.select(
        logits,
        features,
        labels,
        method=method,
        fraction=fraction,
        budget=budget,
        lifting=lifting,
        batch_size=batch_size,
        learning_rate=learning_rate,
        options=read.mapping("--options", options),
        seed=seed,
    )
    read.write_subset(out, subset)
    typer.echo(f"{len(subset.indices)} of {len(labels)} examples, in {out}")


@app.command()
@_with_exit_status
def report(
    storage: Annotated[str, typer.Argument(help="Of the search, such as sqlite:///search.db.")],
    study_name: Annotated[
        str | None,
        typer.Option(
            "--study", "--study-name", help="Its name. Default: the only one in the storage."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The page.")] = Path("report.html"),
) -> None:
    """Make one self-contained HTML page of a search, finished or running.

    jdss report sqlite:///search.db --study mine --out report.html
    """
    import jdss

    jdss.report(storage, study_name, out=out)
    typer.echo(f"{out}")


def main() -> None:
    """The entry point of the command `jdss`."""
    # A command finds the user's own modules as `python -m` does.
    if "" not in sys.path:
        sys.path.insert(0, "")
    app()
