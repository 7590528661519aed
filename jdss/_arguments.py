"""What the command line gives in texts and files, read into what the functions take."""

import json
import tomllib
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from flax import linen as nn
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

import jdss
from jdss import models as known_models
from jdss._words import attribute
from jdss.config import Search
from jdss.data.datasets import DATASETS, is_prepared

_MODELS = {"lenet": "LeNet", "resnet18": "ResNet18", "resnet50": "ResNet50"}
_KINDS = {
    "float": FloatDistribution,
    "int": IntDistribution,
    "categorical": CategoricalDistribution,
}


def with_space(search: Search) -> Search:
    """The same search, with its space read where it is a file."""
    given = search.space
    if isinstance(given, str) and given.endswith((".json", ".toml")):
        return replace(search, space=space(Path(given)))
    return search


def space(path: Path) -> dict[str, BaseDistribution]:
    """A search space from a file.

    Raises:
      ValueError: for a file that is neither JSON nor TOML, or does not describe a space.
    """
    text = path.read_text(encoding="utf-8")
    try:
        described = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except ValueError as error:
        raise ValueError(f"--space {path} cannot be read: {error}") from None
    if not isinstance(described, dict):
        raise ValueError(f"--space must map names to distributions, got {described!r}")
    return {name: distribution(name, value) for name, value in described.items()}


def distribution(name: str, described: Any) -> BaseDistribution:
    """A distribution as files hold it: {"type": "float", "low": 0.1, "high": 1, "log": true}.

    Optuna's own JSON, {"name": "FloatDistribution", "attributes": {…}}, is taken as well.

    Raises:
      ValueError: where it is none.

    Example:
      >>> distribution("epochs", {"type": "int", "low": 10, "high": 20})
      IntDistribution(high=20, log=False, low=10, step=1)
    """
    if isinstance(described, Mapping) and "attributes" in described:
        import optuna

        return optuna.distributions.json_to_distribution(json.dumps(described))
    if not isinstance(described, Mapping) or described.get("type") not in _KINDS:
        raise ValueError(
            f"space[{name!r}] must have a type of {', '.join(map(repr, _KINDS))}, such as "
            f'{{"type": "float", "low": 0.001, "high": 0.1, "log": true}}; got {described!r}'
        )
    options = {key: value for key, value in described.items() if key != "type"}
    try:
        return _KINDS[described["type"]](**options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"space[{name!r}]: {error}") from None


def arrays(path: Path, names: Sequence[str]) -> list[np.ndarray]:
    """Arrays of an .npz file, by name.

    Raises:
      FileNotFoundError: where it is not there.
      ValueError: where it is not such a file, or lacks one of them.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with np.load(path, allow_pickle=False) as content:
            missing = [name for name in names if name not in content]
            if missing:
                raise ValueError(
                    f"{path} must hold arrays {', '.join(names)}; it lacks {', '.join(missing)}"
                )
            return [content[name] for name in names]
    except (OSError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} must be an .npz file: {error}") from None


def examples(option: str, text: str | None) -> tuple[np.ndarray, np.ndarray] | None:
    """Inputs and labels from an .npz file."""
    if text is None:
        return None
    if not text.endswith(".npz"):
        raise ValueError(f"{option} must be an .npz file with inputs and labels, got {text!r}")
    inputs, labels = arrays(Path(text), ("inputs", "labels"))
    return inputs, labels


def validation(text: str) -> Any:
    """A fraction, or inputs and labels from an .npz file."""
    try:
        return float(text)
    except ValueError:
        return examples("--validation", text)


def data(text: str, data_dir: str | None) -> jdss.Dataset | tuple[np.ndarray, np.ndarray]:
    """A data set by name, or from an .npz file.

    Raises:
      ValueError: where it is neither.
    """
    if not text.endswith(".npz"):
        if text not in DATASETS and not is_prepared(text, data_dir):
            raise ValueError(
                f"data must be one of {', '.join(DATASETS)}, or an .npz file; got {text!r}"
            )
        return jdss.load_dataset(text, data_dir=data_dir)
    inputs, labels = arrays(Path(text), ("inputs", "labels"))
    with np.load(text) as content:
        if "test_inputs" not in content:
            return inputs, labels
    test_inputs, test_labels = arrays(Path(text), ("test_inputs", "test_labels"))
    name = Path(text).stem
    num_classes = None if labels.dtype.kind == "f" else _num_classes(labels)
    return jdss.Dataset(name, inputs, labels, test_inputs, test_labels, num_classes)


def model(text: str, loaded: jdss.Dataset | tuple[np.ndarray, np.ndarray]) -> Any:
    """A network by name or import path; a class is given the number of classes.

    Raises:
      ValueError: for an unknown name, with the known ones.
    """
    if ":" not in text:
        known = {name: at for name, at in _MODELS.items() if hasattr(known_models, at)}
        if text not in known:
            raise ValueError(
                f"model must be one of {', '.join(known)}, or package.module:attribute; "
                f"got {text!r}"
            )
        found = getattr(known_models, known[text])
    else:
        found = attribute(text)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        return found
    labels = loaded.labels if isinstance(loaded, jdss.Dataset) else loaded[1]
    known_number = loaded.num_classes if isinstance(loaded, jdss.Dataset) else None
    return found(num_classes=known_number or _num_classes(labels))


def _num_classes(labels: np.ndarray) -> int:
    """The number of outputs that labels ask for: classes, or numbers an example."""
    if labels.dtype.kind == "f":
        return int(np.prod(labels.shape[1:], dtype=int))
    if labels.dtype.kind not in "iu" or not labels.size:
        raise ValueError(f"labels must be class indices or numbers, got dtype {labels.dtype}")
    return int(labels.max()) + 1


def write_subset(path: Path, subset: jdss.Subset) -> None:
    """Writes indices and weights, as arrays or as JSON."""
    if path.suffix == ".npz":
        subset.save(path)
        return
    indices, weights = np.asarray(subset.indices), np.asarray(subset.weights)
    content = {"indices": indices.tolist(), "weights": weights.tolist()}
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")


def write_result(
    path: Path, result: jdss.TuneResult, data_name: str, model_name: str, seed: int
) -> None:
    """Writes a search's result file."""
    from jdss import results

    train, validated = result.search["examples"]
    results.write_result(
        path,
        result,
        seeds={"search": seed},
        scale={"name": "user", "reduced": False, "description": ""},
        dataset={"name": Path(data_name).stem, "train": train, "validation": validated},
        model=model_name,
    )
