"""Hyper-parameter tuning at a fraction of the cost, by data subset selection.

  jdss tune    searches with cheap trials on subsets and retrains the winner on everything
  jdss select  picks a weighted subset of your own examples
  jdss report  makes one HTML page of a search

    jdss tune lenet digits --trials 10 --fraction 0.1
    jdss tune --help

Exit status: 0 all went well, 1 the search failed, 2 a mistake in the arguments, 130 Ctrl-C.
Set JDSS_TRACEBACK=1 to see where an error comes from.
"""

# Options are made by tyro from the functions below and from the dataclasses of `jdss.config`, whose
# docstrings are their help. Nothing of JAX is imported before a command runs: `--help` is fast.

import importlib
import inspect
import json
import operator
import os
import re
import sys
import tempfile
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NoReturn

import tyro
from tyro.conf import Positional

from jdss.config import Named, Search, Selection, Task, Workers

FAILED, MISTAKE, INTERRUPTED = 1, 2, 130
# Errors by their names: they are imported only where they can be raised.
_FAILURES = {"SearchFailedError", "WorkerError", "TrainingDivergedError"}
_MISTAKES = {"ValueError", "TypeError", "OSError", "ImportError", "LookupError"}
_MISTAKES |= {"DatasetNotPreparedError", "StorageError"}

StudyName = Annotated[str | None, tyro.conf.arg(aliases=("--study",))]
_SELECTION, _TASK, _SEARCH = Selection(), Task(), Search()


def tune(
    model: Positional[Named],
    data: Positional[str],
    *,
    fraction: float = 0.05,
    trials: int = 10,
    seed: int = 0,
    selection: Selection = _SELECTION,
    search: Search = _SEARCH,
    task: Task = _TASK,
    validation: str = "0.1",
    test: str | None = None,
    data_dir: str | None = None,
    data_on: str | None = None,
    storage: str | None = None,
    study_name: StudyName = None,
    retrain: bool = True,
    save_to: str | None = None,
    out: Path | None = None,
    programs: bool = True,
    workers: int = 1,
    address: str | None = None,
    progress: bool = True,
) -> None:
    """Search for hyper-parameters on subsets, then retrain the best on everything.

    Interrupted? With --storage and --study, the same command goes on where it was.

        jdss tune lenet digits --fraction 0.1 --trials 10
        jdss tune lenet mnist --pruner asha --trials 40 --storage sqlite:///m.db --study m
        jdss tune my_models:build cifar10 --space space.toml --augmentation crop_flip
        jdss tune resnet18 mine.npz --metric loss --sampler random --out result.json

    Where a function or an object can be given, so can `package.module:attribute`; where a mapping,
    JSON. A space.toml:

        learning_rate = {type = "float", low = 0.001, high = 0.3, log = true}
        epochs = {type = "int", low = 10, high = 20}
        optimizer = {type = "categorical", choices = ["sgd", "adam"]}

    Args:
      model: lenet, resnet18, resnet50, or `package.module:attribute`: a Flax module, linen or NNX,
        a class of them (told num_classes, if it takes that), or a function of architectural
        hyper-parameters.
      data: digits, mnist, cifar10, cifar100, or an .npz file with inputs and labels (and
        test_inputs and test_labels).
      fraction: The share of examples in a subset.
      trials: Trials in all, a resumed study's included.
      seed: Decides on everything random.
      selection: How subsets are chosen.
      search: Where, in which order, and for how long.
      task: What is trained on.
      validation: The share held out to score trials, or an .npz file.
      test: An .npz file, looked at once, after retraining.
      data_dir: Of tensorflow_datasets. Default: TFDS_DATA_DIR.
      data_on: device, or host for more data than a device holds. Default: by size.
      storage: sqlite:///search.db, search.log, postgresql://… Default: memory.
      study_name: The study's name in the storage.
      retrain: Retrain the best on everything.
      save_to: A new directory for the retrained model.
      out: A .json file for the result: trials, ledger, versions.
      programs: Keep compiled programs on disk, so that a second run compiles nothing.
      workers: Processes that train trials, with Ray.
      address: Of the Ray cluster to join. Default: RAY_ADDRESS, or this machine.
      progress: Show progress.
    """
    given = locals()
    if out is not None:  # looked at before hours of work
        out.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out.parent).close()
        if out.is_dir():
            raise ValueError(f"--out must be a file, but {out} is a directory")
    import jdss

    jdss.keep_programs(programs)
    from jdss import _arguments as read

    loaded = read.data(data, data_dir)
    result = _call(
        jdss.tune,
        given,
        model=read.model(model, loaded),
        data=loaded if data_on is None else jdss.keep_on(loaded, data_on),
        search=replace(search, space=read.space(search.space)),
        validation=read.examples("--validation", validation),
        test=None if test is None else read.examples("--test", test),
        workers=Workers(workers, address=address),
    )
    print(result.summary())  # first: it is there whatever becomes of the file
    if result.failure is not None:
        print(f"jdss: {result.failure}", file=sys.stderr)
    if out is not None:
        read.write_result(out, result, data)
    if result.failure is not None:
        raise SystemExit(1)


def select(
    file: Positional[Path],
    *,
    method: str = "grad_match",
    fraction: float | None = None,
    budget: int | None = None,
    lifting: str | None = None,
    batch_size: int = 128,
    learning_rate: float = 0.05,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    out: Path = Path("subset.npz"),
) -> None:
    """Pick a weighted subset by the gradients of a network's last layer.

        jdss select layer.npz --fraction 0.1 --out subset.npz
        jdss select layer.npz --method craig --budget 500 --lifting per_class

    Args:
      file: An .npz file with logits [n, c], labels [n] and features [n, d], the inputs of the last
        dense layer.
      method: grad_match, craig, glister, milo, uniform or stratified.
      fraction: The share of the examples. Default: 0.05.
      budget: How many examples, in place of a fraction.
      lifting: all, per_class or per_batch. Default: the method's own.
      batch_size: Of mini-batches, for per_batch.
      learning_rate: Of the training that follows, for glister.
      options: Passed to the method.
      seed: Decides on everything random.
      out: An .npz file for the indices and weights.
    """
    given = locals()
    if out.suffix != ".npz":
        raise ValueError(f"--out must end in .npz, got {out}")
    import jdss
    from jdss import _arguments as read

    names = ("logits", "features", "labels")
    arrays = dict(zip(names, read.arrays(file, names), strict=True))
    subset = _call(jdss.select, given, **arrays)
    subset.save(out)
    print(f"{len(subset.indices)} of {len(arrays['labels'])} examples, in {out}")


def report(
    storage: Positional[str],
    *,
    study_name: StudyName = None,
    out: Path = Path("report.html"),
) -> None:
    """Make one self-contained HTML page of a search, finished or running.

        jdss report sqlite:///search.db --study mine --out report.html

    Args:
      storage: Of the search, such as sqlite:///search.db.
      study_name: Its name. Default: the only one in the storage.
      out: The page.
    """
    import jdss

    jdss.report(storage, study_name, out=out)
    print(out)


COMMANDS: Mapping[str, Callable[..., None]] = {"tune": tune, "select": select, "report": report}


def main(argv: Sequence[str] | None = None) -> None:
    """The entry point of the command `jdss`."""
    # A command finds the user's own modules as `python -m` does.
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        try:
            _run(*(sys.argv[1:] if argv is None else argv) or ["--help"])
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # of `| head`; Python would flush once more as it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt as interruption:
        told = str(interruption) or "interrupted; with --storage, the same command goes on"
        _end(INTERRUPTED, told)
    except Exception as error:
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if not kinds & (_FAILURES | _MISTAKES) or os.environ.get("JDSS_TRACEBACK"):
            raise  # a bug of ours: its traceback is what there is to say
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        status = FAILED if kinds & _FAILURES else MISTAKE
        _end(status, " ".join(text.split()) or type(error).__name__)


def _run(name: str, *rest: str) -> None:
    plain = (tyro.conf.OmitArgPrefixes, tyro.conf.UseAppendAction, tyro.conf.DisallowNone)
    if name in ("-h", "--help"):
        print(__doc__)
    elif name not in COMMANDS:
        _end(MISTAKE, f"no command {name!r}\n\n{__doc__}")
    else:
        tyro.cli(COMMANDS[name], prog=f"jdss {name}", args=rest, config=plain, registry=_REGISTRY)


def _end(status: int, text: str) -> NoReturn:
    print(f"jdss: {text}", file=sys.stderr)
    sys.exit(status)


def _call(function: Callable[..., Any], given: Mapping[str, Any], **read: Any) -> Any:
    """Calls a function with what it has in common with a command, but for what was `read`."""
    common = inspect.signature(function).parameters.keys() & given.keys()
    return function(**{name: given[name] for name in common} | read)


def _value(text: str) -> Any:
    """What a word stands for: an import path for its object, JSON for a mapping, or itself.

    >>> _value("asha"), _value('{"ridge": 0.0}'), _value("math:pi")
    ('asha', {'ridge': 0.0}, 3.141592653589793)
    """
    try:
        if text.lstrip().startswith(("{", "[")):
            return json.loads(text)
        if not re.fullmatch(r"[\w.]+:[\w.]+", text):
            return text
        module, _, attribute = text.partition(":")
        return operator.attrgetter(attribute)(importlib.import_module(module))
    except json.JSONDecodeError as error:
        raise ValueError(f"a mapping must be given in JSON, got {text!r} ({error})") from None
    except (ModuleNotFoundError, AttributeError) as error:
        raise ValueError(f"{text!r} cannot be imported: {error}") from None


_REGISTRY = tyro.constructors.ConstructorRegistry()


@_REGISTRY.primitive_rule
def _free_form(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
    """Anything, a function or a mapping is given as a word: a name, an import path or JSON."""
    union = typing.get_origin(info.type) in (typing.Union, types.UnionType)
    parts = typing.get_args(info.type) if union else (info.type,)
    kinds = {typing.get_origin(part) or part for part in parts}
    if not kinds & {Any, Callable, Mapping}:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="JSON|MODULE:ATTRIBUTE" if Mapping in kinds else "NAME|MODULE:ATTRIBUTE",
        instance_from_str=lambda texts: _value(texts[0]),
        is_instance=lambda value: True,
        str_from_instance=lambda value: [str(value)],
    )
