"""What the command line names by texts and files, read into what the functions take."""

import json
import platform
import shlex
import sys
import tomllib
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from importlib import metadata
from inspect import signature
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax import nnx
from optuna.distributions import BaseDistribution, json_to_distribution

import jdss
from jdss._texts import hide_passwords
from jdss.data.datasets import DATASETS, is_prepared
from jdss.data.labels import encode_labels
from jdss.ledger import before_a_search

_MODELS = {"lenet": "LeNet", "resnet18": "ResNet18", "resnet50": "ResNet50"}
_KINDS = {"float": "Float", "int": "Int", "categorical": "Categorical"}


def space(given: Any) -> Any:
    """A search space, read where it is a file: distributions by name."""
    if isinstance(given, str) and given.endswith((".json", ".toml")):
        given = _read_space(given)
    if not isinstance(given, Mapping):
        return given
    return {
        name: one if isinstance(one, BaseDistribution) else distribution(name, one)
        for name, one in given.items()
    }


def _read_space(given: str) -> dict[str, Any]:
    """What a file says of a space."""
    text = Path(given).read_text(encoding="utf-8")
    try:
        described: Any = tomllib.loads(text) if given.endswith(".toml") else json.loads(text)
    except ValueError as error:
        raise ValueError(f"--space {given} cannot be read: {error}") from None
    if not isinstance(described, dict):
        raise ValueError(f"--space must map names to distributions, got {described!r}")
    return described


def distribution(name: str, described: Any) -> BaseDistribution:
    """A distribution as files hold it; Optuna's own JSON is taken as well.

    >>> distribution("epochs", {"type": "int", "low": 10, "high": 20})
    IntDistribution(high=20, log=False, low=10, step=1)
    """
    known = dict(described) if isinstance(described, dict) else {}
    if (kind := known.pop("type", None)) in _KINDS:
        known = {"name": f"{_KINDS[kind]}Distribution", "attributes": known}
    elif "attributes" not in known:
        raise ValueError(
            f"space[{name!r}] must have a type of {', '.join(map(repr, _KINDS))}, such as "
            f'{{"type": "float", "low": 0.001, "high": 0.1, "log": true}}; got {described!r}'
        )
    try:
        return json_to_distribution(json.dumps(known))
    except (TypeError, ValueError) as error:
        raise ValueError(f"space[{name!r}]: {error}") from None


@before_a_search("loading")
def arrays(path: Path, names: tuple[str, ...], more: tuple[str, ...] = ()) -> list[np.ndarray]:
    """Arrays of an .npz file by name, and more where the file has any of those."""
    try:
        with np.load(path, allow_pickle=False) as content:
            names += more if any(name in content for name in more) else ()
            if missing := [name for name in names if name not in content]:
                raise KeyError(
                    f"{path} must hold arrays {', '.join(names)}; it lacks {', '.join(missing)}"
                )
            return [content[name] for name in names]
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}") from None
    except (OSError, TypeError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        is_object = "pickle" in str(error)
        kind = ", of numbers or of strings (as by .astype('U'))" if is_object else ""
        raise ValueError(f"{path} must be an .npz file{kind}: {error}") from None


def examples(option: str, text: str) -> Any:
    """A fraction for `--validation`; else inputs and labels from an .npz file."""
    if text.endswith(".npz"):
        return tuple(arrays(Path(text), ("inputs", "labels")))
    with suppress(ValueError):
        if option == "--validation":
            return float(text)
    raise ValueError(f"{option} must be an .npz file with inputs and labels, got {text!r}")


def data(text: str, data_dir: str | None) -> jdss.Dataset | tuple[np.ndarray, np.ndarray]:
    """A data set by name, or from an .npz file."""
    if text.endswith(".npz"):
        test = ("test_inputs", "test_labels")
        inputs, labels, *test_set = arrays(Path(text), ("inputs", "labels"), test)
        if not test_set:
            return inputs, labels
        num_classes = _num_outputs(labels) if labels.dtype.kind in "iu" else None
        return jdss.Dataset(Path(text).stem, inputs, labels, test_set[0], test_set[1], num_classes)
    if text not in DATASETS and not is_prepared(text, data_dir):
        raise ValueError(
            f"data must be one of {', '.join(DATASETS)}, or an .npz file; got {text!r}"
        )
    return jdss.load_dataset(text, data_dir=data_dir)


def model(given: Any, loaded: jdss.Dataset | tuple[np.ndarray, np.ndarray]) -> Any:
    """A network by name, or as imported; a class that takes `num_classes` is told."""
    if isinstance(given, str):
        if given not in _MODELS:
            known = ", ".join(_MODELS)
            raise ValueError(
                f"model must be one of {known}, or package.module:attribute; got {given!r}"
            )
        given = getattr(jdss.models, _MODELS[given])
    if not (isinstance(given, type) and issubclass(given, (nn.Module, nnx.Module))):
        return given
    told = {}
    if "num_classes" in signature(given.__init__).parameters:
        number = loaded.num_classes if isinstance(loaded, jdss.Dataset) else None
        labels = loaded.labels if isinstance(loaded, jdss.Dataset) else loaded[1]
        told["num_classes"] = number or _num_outputs(labels)
    make: Any = given
    if issubclass(given, nnx.Module):
        return (lambda rngs, **own: make(rngs=rngs, **told, **own)) if told else make
    try:
        return make(**told)
    except TypeError:  # it takes hyper-parameters of the space
        return partial(make, **told)


def _num_outputs(labels: np.ndarray) -> int:
    """The number of outputs that labels ask for: classes, or numbers an example."""
    if labels.dtype.kind == "f":
        return int(np.prod(labels.shape[1:], dtype=int))
    _, classes = encode_labels(labels)  # of strings and booleans
    if classes is not None:
        return len(classes)
    if labels.dtype.kind not in "iu" or not labels.size:
        raise ValueError(f"labels must be class indices or numbers, got dtype {labels.dtype}")
    return int(labels.max()) + 1


def write_result(path: Path, result: jdss.TuneResult, dataset: str) -> None:
    """Writes what a search found, and by what: whole or not at all, without passwords."""
    packages = ("jax", "jaxlib", "flax", "optax", "optuna", "numpy")
    content = {
        "command": shlex.join(map(hide_passwords, ["jdss", *sys.argv[1:]])),
        "versions": {
            "jdss": jdss.__version__,
            "python": platform.python_version(),
            **{package: metadata.version(package) for package in packages},
        },
        "hardware": {
            "platform": platform.platform(),
            "devices": [device.device_kind for device in jax.devices()],
        },
        "dataset": {"name": Path(dataset).stem},
        **result.as_dict(),
    }
    temporary = path.with_name(f".{path.name}.tmp")
    text = json.dumps(content, indent=2, allow_nan=False, default=lambda value: value.tolist())
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)
