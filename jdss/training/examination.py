"""Whether evaluation is one: the same outputs each time, and each example's by itself.

Modules say in many ways whether they train, and not all are known here; so that they do not train
while they are evaluated is looked at, not guessed. The compiled forward pass is the one that
selection and validation use anyway.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdss.losses import LOSSES, Loss
from jdss.models.calling import class_name, input_shapes
from jdss.training.forward import compute_outputs
from jdss.training.problem import Problem
from jdss.training.state import TrainState

_FEW = 8
_TOLERANCE = 2e-2  # of the largest output: the rounding of half precision, and no dropout's mask

_passed: set[Any] = set()  # the models that were looked at: once a process is enough

REMEDY = (
    "dropout or the statistics of a batch stay on. Tell them the mode by an argument or a field "
    "train, deterministic or use_running_average of the module, which is set for you; give a "
    "bridged NNX module as the nnx.Module that it is"
)


def check_evaluation(state: TrainState, problem: Problem) -> None:
    """Raises ValueError where outputs or losses are not each example's own, or not reproducible.

    Args:
      state: the model, before its first step.
      problem: whose first examples are looked at.
    """
    shapes, structure = jax.tree.flatten(input_shapes(problem.examples.inputs))
    kinds = tuple((leaf.shape, str(leaf.dtype)) for leaf in shapes)
    known = (state.model, state.loss, kinds, structure)
    if known in _passed:
        return
    jax.block_until_ready(state.params)  # NumPy would wait for ever for what could not be allocated
    few = problem.train[np.unique(np.linspace(0, len(problem.train) - 1, _FEW).astype(int))]
    # A layer that begins with zeros, as some last ones do, would hide what comes before it.
    seen = replace(state, params=jax.tree.map(_without_zeros, state.params))

    def outputs_of(indices: np.ndarray) -> np.ndarray:
        size = problem.chunk_size
        return np.asarray(compute_outputs(seen, problem.examples, indices, chunk_size=size))

    batch = np.resize(few, problem.chunk_size)
    among_others = np.concatenate([np.resize(few[:1], len(batch) - len(few)), few[::-1]])
    outputs = outputs_of(batch)
    _compare(state, outputs, outputs_of(batch), "for the same batch twice")
    alone = outputs_of(among_others)[::-1][: len(few)]
    _compare(state, outputs[: len(few)], alone, "among other examples")
    if state.loss not in LOSSES.values():
        labels = jnp.asarray(problem.labels_of(few))
        _check_loss(state.loss, jnp.asarray(outputs[: len(few)]), labels)
    _passed.add(known)


def _without_zeros(leaf: jax.Array) -> Any:
    values = np.asarray(leaf)
    if values.any() or not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    generator = np.random.default_rng(0)
    scale = 0.1 if values.ndim < 2 else np.prod(values.shape[:-1]) ** -0.5
    return (scale * generator.normal(size=values.shape)).astype(leaf.dtype)


def _compare(state: TrainState, first: np.ndarray, second: np.ndarray, where: str) -> None:
    distance = np.abs(np.nan_to_num(first) - np.nan_to_num(second)).max()
    if distance > _TOLERANCE * max(np.abs(np.nan_to_num(first)).max(), 1e-30):
        raise ValueError(
            "model must give an example the same outputs whenever it is evaluated, but "
            f"{class_name(state.model)} gives it others {where}: {REMEDY}"
        )


def _check_loss(loss: Loss, outputs: jax.Array, targets: jax.Array) -> None:
    """Raises ValueError where the loss of an example depends on those beside it."""
    for name, function in (("value", loss.values), ("last_layer_errors", loss.errors)):
        together = np.asarray(function(outputs, targets))
        alone = [
            function(outputs[place : place + 1], targets[place : place + 1])
            for place in range(len(outputs))
        ]
        if not np.allclose(together, np.concatenate(alone), 1e-3, 1e-5, equal_nan=True):
            raise ValueError(
                f"loss {loss.name!r} must treat every example by itself, but its {name} changes "
                f"with the examples beside it: outputs [b{_axes(outputs)}] and targets "
                f"[b{_axes(targets)}] may have been broadcast (take outputs[:, 0] for targets [b])"
            )


def _axes(array: jax.Array) -> str:
    return "".join(f", {size}" for size in array.shape[1:])
