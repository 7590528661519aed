"""Trained models: predicting with them, saving them with Orbax, and loading them back."""

import os
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jdss import _checks
from jdss.data.examples import Normalization
from jdss.data.inputs import as_arrays, as_stored, check_inputs, kind_of
from jdss.models.calling import apply_model, check_model, init_model, input_shapes
from jdss.training.state import TrainState

_NORMALIZATION = "normalization"  # a checkpoint of its own, in the model's directory
_ARCHITECTURE = "architecture.pkl"


@dataclass(frozen=True)
class TrainedModel:
    """All that a prediction needs.

    Attributes:
      model: the Flax module; one of NNX as a linen module around it.
      variables: its variables, for `model.apply(variables, normalization(inputs))`.
      normalization: what was done to every input; None means nothing.
      classes: what the classes are called, [c]: their indices, or strings or booleans where labels
        were such; None where they were numbers.
      inputs: shapes and types [1, …] of what it was trained on; None where they are not known.

    Results of `fit` have one as `trained`. Made by `jdss.load`.
    """

    model: nn.Module
    variables: Mapping[str, Any]
    normalization: Normalization | None = None
    classes: np.ndarray | None = None
    inputs: Any = None

    def predict(self, raw: Any, *, batch_size: int = 512) -> np.ndarray:
        """What the labels of inputs are, [m]: classes as they were given, or numbers.

        Args:
          raw: inputs as `fit` took them (images as uint8, tables of pandas, several arrays), of any
            number m.
          batch_size: how many pass through the model at once.

        Returns:
          The class of the largest output; where there are no classes, or outputs are no scores of
          theirs, the outputs, of a single one as [m].

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
        inputs = as_arrays(raw)
        size = check_inputs(inputs)
        inputs = jax.tree.map(as_stored, inputs)
        if self.inputs is not None and kind_of(inputs) != kind_of(self.inputs):
            raise ValueError(
                f"inputs must be like those trained on, {kind_of(self.inputs)} each, got "
                f"{kind_of(inputs)}"
            )
        batch = min(_checks.check_positive_int("batch_size", batch_size), size)
        found = []
        for start in range(0, size, batch):
            rows = np.arange(start, start + batch) % size  # the last batch is filled up
            part = jax.tree.map(lambda leaf, rows=rows: leaf[rows], inputs)
            found.append(np.asarray(_outputs(self.model, self.variables, self.normalization, part)))
        return np.concatenate(found)[:size]


@partial(jax.jit, static_argnums=0)
def _outputs(model: nn.Module, variables: Any, normalization: Any, inputs: Any) -> jax.Array:
    if normalization is not None:
        inputs = normalization(inputs)
    # What a module changes in evaluation, such as a counter, is thrown away.
    mutable = [name for name in variables if name != "params"]
    outputs: jax.Array = apply_model(model, variables, inputs, mutable=mutable)[0]
    return outputs.astype(jnp.float32)


class TrainedResult:
    """What results of trainings have in common: a `state`, and what predictions need beside it."""

    state: TrainState
    normalization: Normalization | None
    classes: np.ndarray | None = None
    inputs: Any = None

    @property
    def trained(self) -> TrainedModel:
        """The trained model by itself."""
        state = self.state
        if state is None:
            raise ValueError(
                "the model was retrained by an earlier call: jdss.load(…) has it where that call "
                "was told to save it (save_to=)"
            )
        given = self.normalization, self.classes, self.inputs
        return TrainedModel(state.model, state.variables, *given)

    def predict(self, raw: Any, *, batch_size: int = 512) -> np.ndarray:
        """What the labels of inputs are, as they were given (see `TrainedModel.predict`)."""
        return self.trained.predict(raw, batch_size=batch_size)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Saves the trained model in a new directory, for `jdss.load`, and returns its path."""
        return save_model(path, self)

    def __reduce__(self) -> tuple[Any, ...]:
        # Models are often defined where they are used, which pickle alone cannot name.
        return _restored, (type(self), cloudpickle.dumps(vars(self)))


def _restored(kind: type, attributes: bytes) -> Any:
    result: Any = object.__new__(kind)
    vars(result).update(pickle.loads(attributes))
    return result


def save_model(
    path: str | os.PathLike[str], state: Any, normalization: Normalization | None = None
) -> Path:
    """Saves a trained model in a new directory: its variables as an Orbax checkpoint, and the rest.

    Args:
      path: the directory.
      state: a result of `fit`, with all that `jdss.load` and predictions need; or a trained state.
      normalization: what was done to the inputs, where a state alone is given; None keeps none.

    Returns:
      The directory, as an absolute path.

    Raises:
      FileExistsError: where `path` is there already: nothing computed is overwritten.
      TypeError: for another state or normalization than results have.

    Example:
      ```python
      result = jdss.fit(model, (inputs, labels))
      print(jdss.save_model("model", result))
      ```
    """
    import orbax.checkpoint as ocp  # here, since it takes as long to import as all of jdss

    if not isinstance(state, TrainState | TrainedResult):
        raise TypeError(
            "state must be a result of jdss.fit, or its TrainState, result.state, got "
            f"{type(state).__name__}"
        )
    if not isinstance(normalization, Normalization | None):
        raise TypeError(
            "normalization must be a Normalization, as result.normalization is, or None, got "
            f"{type(normalization).__name__}"
        )
    if isinstance(state, TrainState):
        trained = TrainedModel(state.model, state.variables, normalization)
    else:
        trained = state.trained
    directory = Path(path).absolute()
    if directory.exists():
        raise FileExistsError(f"path must not exist yet, but {path} does")
    directory.parent.mkdir(parents=True, exist_ok=True)
    part = directory.with_name(f".{directory.name}.{os.getpid()}.part")
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(part, dict(trained.variables))
            if trained.normalization is not None:
                # From the host: what a device held could be restored on the same devices only.
                kept = vars(trained.normalization.on_host())
                checkpointer.save(part / _NORMALIZATION, kept)
        shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), dict(trained.variables))
        about = (trained.model, shapes, trained.classes, trained.inputs)
        (part / _ARCHITECTURE).write_bytes(cloudpickle.dumps(about))
        part.rename(directory)  # complete, or not there
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return directory


def load(path: str | os.PathLike[str]) -> TrainedModel:
    """Loads what `save_model`, `result.save` or `tune(save_to=…)` saved, ready to predict.

    The architecture is a pickle, which runs code of whoever made it: load only what you trust.
    Where the model's class is in a module, that module has to be importable.

    Args:
      path: the directory.

    Raises:
      FileNotFoundError: where `path` is not there, or holds no architecture.

    Example:
      ```python
      labels = jdss.load("model").predict(images)
      ```
    """
    file = Path(path).absolute() / _ARCHITECTURE
    if not file.is_file():
        raise FileNotFoundError(
            f"path must be a directory made by jdss.save_model, with {_ARCHITECTURE} in it, got "
            f"{path}; jdss.load_model takes one without"
        )
    model, shapes, classes, inputs = pickle.loads(file.read_bytes())
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(*leaf),
        shapes,
        is_leaf=lambda value: isinstance(value, tuple),
    )
    normalization = None
    if (file.parent / _NORMALIZATION).is_dir():
        normalization = load_normalization(path)
    return TrainedModel(model, _restore(file.parent, like), normalization, classes, inputs)


def load_model(path: str | os.PathLike[str], model: Any, input_shape: Any) -> dict[str, Any]:
    """Loads the variables that `save_model` saved, into a model that one has.

    Args:
      path: the directory.
      model: the module that was trained.
      input_shape: the shape of one example, for example (28, 28, 1); for several inputs, or inputs
        that are no images or floats, the inputs of some examples themselves.

    Raises:
      FileNotFoundError: where `path` is not there.
      ValueError: where it holds the variables of another model.

    Example:
      ```python
      variables = jdss.load_model("model", model, (28, 28, 1))
      normalization = jdss.load_normalization("model")
      logits = model.apply(variables, normalization(images))
      ```
    """
    directory = Path(path).absolute()
    if not directory.is_dir():
        raise FileNotFoundError(f"path must be a directory made by save_model, got {path}")
    inputs = input_shape
    if isinstance(inputs, (tuple, list)) and all(isinstance(size, int) for size in inputs):
        inputs = jax.ShapeDtypeStruct((1, *inputs), jnp.float32)
    init = partial(init_model, check_model(model))
    like = jax.eval_shape(init, jax.random.key(0), input_shapes(inputs))
    try:
        return _restore(directory, dict(like))
    except ValueError as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"path must hold the variables of this model for inputs {input_shape}; {path} "
            f"holds others ({reason})"
        ) from error


def _restore(directory: Path, like: Any) -> dict[str, Any]:
    import orbax.checkpoint as ocp

    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), like
    )
    with ocp.StandardCheckpointer() as checkpointer:
        restored: dict[str, Any] = checkpointer.restore(directory, target)
    return restored


def load_normalization(path: str | os.PathLike[str]) -> Normalization:
    """Loads what `save_model` kept of how inputs were normalised.

    Raises:
      FileNotFoundError: where `path` is not there, or keeps none.

    Example:
      ```python
      normalization = jdss.load_normalization("model")
      inputs = normalization(images)  # as in training
      ```
    """
    import orbax.checkpoint as ocp

    directory = Path(path).absolute() / _NORMALIZATION
    if not directory.is_dir():
        raise FileNotFoundError(
            f"path must be a directory made by save_model with a normalization, got {path}"
        )
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(directory)
    return Normalization(**_with_tuples(restored)).on_host()


def _with_tuples(tree: Any) -> Any:
    """What was saved: the inputs of an example are no lists, and Orbax restores tuples as such."""
    if isinstance(tree, dict):
        return {name: _with_tuples(value) for name, value in tree.items()}
    return tuple(map(_with_tuples, tree)) if isinstance(tree, list) else tree
