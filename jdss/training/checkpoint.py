"""Trained models: predicting with them, saving them, and loading them back."""

import hashlib
import os
import pickle
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import serialization

from jdss import _checks
from jdss.data.examples import HostExamples, Normalization
from jdss.data.inputs import as_arrays, as_stored, check_inputs, kind_of, with_columns
from jdss.data.rows import ArrayRows
from jdss.models.calling import class_name
from jdss.training.forward import compute_outputs
from jdss.training.state import TrainState

_ARRAYS, _ARCHITECTURE = "arrays.msgpack", "architecture.pkl"
SAVED_FILES = {_ARRAYS, _ARCHITECTURE}
"""What the directory of a saved model holds."""


@dataclass(frozen=True, repr=False)
class TrainedModel:
    """All that a prediction needs.

    Attributes:
      model: the Flax module; one of NNX as a linen module around it.
      variables: its variables, for `model.apply(variables, normalization(inputs))`.
      normalization: what was done to every input; None means nothing.
      classes: what the classes are called, [c]: their indices, or strings or booleans where labels
        were such; None where they were numbers.
      inputs: shapes and types [1, …] of what it was trained on; None where they are not known.
      columns: what the columns of tables were called, if there were any.

    Results of `fit` have one as `trained`, and `jdss.load` gives one back.

    Example:
      >>> import jdss
      >>> state = jdss.init_state(nn.Dense(2), np.ones((1, 3), np.float32), jax.random.key(0))
      >>> model = TrainedModel(state.model, state.variables)  # after a loop of one's own
      >>> model.outputs(np.ones((5, 3), np.float32)).shape
      (5, 2)
    """

    model: nn.Module
    variables: Mapping[str, Any]
    normalization: Normalization | None = None
    classes: np.ndarray | None = None
    inputs: Any = None
    columns: Any = None

    def __repr__(self) -> str:
        """Without the weights, of which there may be millions."""
        return f"<TrainedModel of {class_name(self.model)}>"

    def predict(self, raw: Any, *, batch_size: int = 512) -> np.ndarray:
        """What the labels of inputs are, [m]: classes as they were given, or numbers.

        Inputs are as `fit` took them (images as uint8, several arrays, tables of pandas, whose
        columns are found by their names); at most `batch_size` pass through the model at once.
        Where there are no classes, or outputs are no scores of theirs, they are the outputs, of a
        single one as [m].

        Raises:
          ValueError, TypeError: for inputs of another shape or type than those trained on.
        """
        outputs = self.outputs(raw, batch_size=batch_size)
        classes = self.classes
        if classes is not None and outputs.ndim == 2 and outputs.shape[1] >= max(len(classes), 2):
            found: np.ndarray = classes[outputs[:, : len(classes)].argmax(axis=1)]
            return found
        return outputs[:, 0] if outputs.shape[1:] == (1,) else outputs

    def outputs(self, raw: Any, *, batch_size: int = 512) -> np.ndarray:
        """The model's outputs float32[m, …] for inputs as `predict` takes them."""
        inputs = as_arrays(with_columns("inputs", raw, self.columns))
        size = check_inputs(inputs)
        inputs = jax.tree.map(as_stored, inputs)
        if self.inputs is not None and kind_of(inputs) != kind_of(self.inputs):
            raise ValueError(
                f"inputs must be like those trained on, {kind_of(self.inputs)} each, got "
                f"{kind_of(inputs)}"
            )
        batch = min(_checks.check_positive_int("batch_size", batch_size), size)
        model_state = dict(self.variables)
        params = model_state.pop("params", {})
        state = TrainState(params, model_state, (), jnp.int32(0), self.model, ())
        rows = HostExamples(ArrayRows(inputs), np.zeros(size, np.int32), self.normalization)  # type: ignore[arg-type]
        return compute_outputs(state, rows, np.arange(size), chunk_size=batch)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Saves it in a new directory for `jdss.load`, and returns that as an absolute path.

        Raises:
          FileExistsError: where `path` is there already: nothing computed is overwritten.
        """
        directory = Path(path).absolute()
        if directory.exists():
            raise FileExistsError(f"path must not exist yet, but {path} does")
        arrays = {"variables": dict(self.variables), "normalization": self.normalization}
        named = jax.device_get(_by_name(arrays))
        kinds = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arrays)
        about = (self.model, kinds, self.classes, self.inputs, self.columns)
        part = directory.with_name(f".{directory.name}.{uuid.uuid4().hex}.part")
        part.mkdir(parents=True)
        try:
            write_whole(part / _ARRAYS, serialization.msgpack_serialize(named, in_place=True))
            write_whole(part / _ARCHITECTURE, cloudpickle.dumps(about))
            part.rename(directory)  # complete, or not there
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return directory


def _by_name(tree: Any) -> dict[str, Any]:
    """Leaves by their places, whatever the nodes are made of."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file that is not lost with the machine's power."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def is_saved(path: str | os.PathLike[str]) -> bool:
    """Whether there is a model to load."""
    return all((Path(path) / name).is_file() for name in SAVED_FILES)


def digest_of(path: str | os.PathLike[str]) -> str | None:
    """By which a saved model is known again; None where there is none."""
    if not is_saved(path):
        return None
    with open(Path(path) / _ARRAYS, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load(path: str | os.PathLike[str]) -> TrainedModel:
    """Loads what `result.save`, `TrainedModel.save` or `tune(save_to=…)` saved, ready to predict.

    The architecture is a pickle, which runs code of whoever made it: load only what you trust.
    Where the model's class is in a module, that module has to be importable. The arrays by their
    names are in `arrays.msgpack`, which `flax.serialization.msgpack_restore` reads without it.

    Raises:
      FileNotFoundError: where `path` is not there, or holds no model.
      ValueError: where it holds the arrays of another.

    Example:
      ```python
      labels = jdss.load("model").predict(images)
      ```
    """
    if not is_saved(path):
        raise FileNotFoundError(
            f"path must be a directory made by a result's save, with {_ARCHITECTURE} and {_ARRAYS} "
            f"in it, got {path}"
        )
    directory = Path(path)
    try:
        model, kinds, *about = pickle.loads((directory / _ARCHITECTURE).read_bytes())
    except ModuleNotFoundError as error:
        error.add_note(f"the model saved in {path} is of that module: it has to be importable")
        raise
    found = serialization.msgpack_restore((directory / _ARRAYS).read_bytes())
    wanted, structure = _by_name(kinds), jax.tree.structure(kinds)
    for name, kind in wanted.items():
        leaf = found.get(name)
        if getattr(leaf, "shape", None) != kind.shape or leaf.dtype != kind.dtype:
            raise ValueError(
                f"path must hold the arrays of its own model; {name} differs in {path}"
            )
    arrays = jax.tree.unflatten(structure, [found[name] for name in wanted])
    variables = jax.tree.map(jnp.asarray, arrays["variables"])
    return TrainedModel(model, variables, arrays["normalization"], *about)


class TrainedResult:
    """What results of trainings have in common: a `state`, and what predictions need beside it."""

    state: TrainState
    normalization: Normalization | None
    classes: np.ndarray | None = None
    inputs: Any = None
    columns: Any = None

    def __repr__(self) -> str:
        """Without the weights, of which there may be millions."""
        model = None if self.state is None else class_name(self.state.model)
        return f"<{type(self).__name__} of {model}>"

    @property
    def trained(self) -> TrainedModel:
        """The trained model by itself."""
        state = self.state
        if state is None:
            raise ValueError(
                "the model was retrained by an earlier call, and not saved (save_to=): the same "
                "call with save_to='a new directory' retrains and keeps it"
            )
        given = self.normalization, self.classes, self.inputs, self.columns
        return TrainedModel(state.model, state.variables, *given)

    def predict(self, raw: Any, *, batch_size: int = 512) -> np.ndarray:
        """See `TrainedModel.predict`."""
        return self.trained.predict(raw, batch_size=batch_size)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """See `TrainedModel.save`."""
        return self.trained.save(path)

    def __reduce__(self) -> tuple[Any, ...]:
        # Models are often defined where they are used, which pickle alone cannot name.
        return _restored, (type(self), cloudpickle.dumps(vars(self)))


def _restored(kind: type, attributes: bytes) -> Any:
    result: Any = object.__new__(kind)
    vars(result).update(pickle.loads(attributes))
    return result
