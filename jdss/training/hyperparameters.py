"""Hyper-parameters as traced values, the choice of the optimizer included.

So a search compiles the training step once for each batch size, the only static part. A family of
optimizers holds one slot for each distinct layout of state, which SGD and Nesterov, and Adam and
AdamW share, since a trial uses only one. The initial state may not depend on the hyper-parameters.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from jdss import _checks


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Hyperparameters:
    """What a trial may change without a new compilation, and the batch size, which compiles one.

    Attributes:
      learning_rate: float32[], the step size.
      momentum: float32[], momentum of SGD and Nesterov, β₁ of Adam and AdamW.
      weight_decay: float32[], L2 for SGD, Nesterov and Adam, decoupled for AdamW.
      optimizer: int32[], position in the family of optimizers (by default `jdss.OPTIMIZERS`).
      learning_rate_schedule: int32[], position in `LEARNING_RATE_SCHEDULES`: "cosine" or "linear"
        from the learning rate down to 0 at the last step of training, "warmup_cosine", which rises
        to it over the first tenth of the steps, or "constant".
      label_smoothing: float32[] in [0, 1), the share of the target that is spread evenly over
        all classes. Last-layer gradients for selection are those of the smoothed loss, too.
      gradient_clipping: float32[], the largest Euclidean norm of a step's gradient over all
        parameters; a longer one is scaled down to it. Infinity where nothing is clipped.
      epochs: int32[], the length of training, in epochs.
      batch_size: int, static: the most examples in a mini-batch, over all devices. An epoch's
        batches are of one size, but for one example: 129 examples are two batches, of 65 and 64.

    Made by `jdss.hyperparameters`.
    """

    learning_rate: jax.Array
    momentum: jax.Array
    weight_decay: jax.Array
    optimizer: jax.Array
    learning_rate_schedule: jax.Array
    label_smoothing: jax.Array
    gradient_clipping: jax.Array
    epochs: jax.Array
    batch_size: int = field(metadata={"static": True})


LEARNING_RATE_SCHEDULES: Mapping[str, optax.Schedule] = {
    "constant": optax.constant_schedule(1.0),
    "cosine": optax.cosine_decay_schedule(1.0, decay_steps=1),
    "linear": optax.linear_schedule(1.0, 0.0, transition_steps=1),
    "warmup_cosine": optax.warmup_cosine_decay_schedule(0.01, 1.0, warmup_steps=0.1, decay_steps=1),
}
"""Functions of the share in [0, 1] of training's steps that are over, not of a step: a trial's
length is a traced value, and Optax's schedules take concrete ones."""

LARGEST_LEARNING_RATES = {"sgd": 0.05, "nesterov": 0.05, "adam": 3e-3, "adamw": 3e-3}
"""What `relative_learning_rate` is a share of. At these rates each optimizer trained LeNet on
MNIST with momenta of 0.5 and 0.9 and batches of 32 and 128, on subsets and on all the data."""

DEFAULTS: Mapping[str, Any] = {
    "learning_rate": 0.05,
    "momentum": 0.9,
    "weight_decay": 5e-4,  # the authors'
    "optimizer": "sgd",
    # Without annealing the last steps on a small weighted subset throw away what the model had.
    "learning_rate_schedule": "cosine",
    "label_smoothing": 0.0,
    "gradient_clipping": None,
    "epochs": 20,
    "batch_size": 128,
}
"""What a hyper-parameter is where nothing is said of it."""

NAMES = (*DEFAULTS, "relative_learning_rate")
"""The hyper-parameters of training, by the names that `hyperparameters` takes."""

# Optimizers --------------------------------------------------------------------------------------
# They work on all parameters as one vector: with four of them in one compiled step, this takes half
# of LeNet's compilation off. One of a user's own is given the parameters as they are.

OptimizerFactory = Callable[[Hyperparameters], optax.GradientTransformation]
Slots = tuple[tuple[jax.Array, ...], ...]


def _with_l2(
    hyper: Hyperparameters, inner: optax.GradientTransformation
) -> optax.GradientTransformation:
    return optax.chain(optax.add_decayed_weights(hyper.weight_decay), inner)


def sgd(hyper: Hyperparameters) -> optax.GradientTransformation:
    """SGD with heavy-ball momentum; weight decay is added to the gradient (L2)."""
    return _with_l2(hyper, optax.sgd(hyper.learning_rate, momentum=hyper.momentum))


def nesterov(hyper: Hyperparameters) -> optax.GradientTransformation:
    """SGD with Nesterov's momentum; weight decay is added to the gradient (L2)."""
    return _with_l2(hyper, optax.sgd(hyper.learning_rate, momentum=hyper.momentum, nesterov=True))


def adam(hyper: Hyperparameters) -> optax.GradientTransformation:
    """Adam with β₁ = momentum; weight decay is added to the gradient (L2)."""
    return _with_l2(hyper, optax.adam(hyper.learning_rate, b1=hyper.momentum))


def adamw(hyper: Hyperparameters) -> optax.GradientTransformation:
    """AdamW with β₁ = momentum and decoupled weight decay."""
    decay = hyper.weight_decay
    return optax.adamw(hyper.learning_rate, b1=hyper.momentum, weight_decay=decay)


OPTIMIZERS: Mapping[str, OptimizerFactory] = {
    "sgd": sgd,
    "nesterov": nesterov,
    "adam": adam,
    "adamw": adamw,
}
"""The optimizers by name, in the order of their index in `Hyperparameters.optimizer`.

An optimizer is a function from `Hyperparameters` with traced leaves to an Optax transformation.
"""


def check_optimizers(optimizers: Any) -> None:
    """Raises TypeError where these are not functions to optimizers, by name."""
    if not isinstance(optimizers, Mapping) or not optimizers:
        raise TypeError(
            "optimizers must map at least one name to a function of jdss.Hyperparameters to an "
            f"Optax transformation, got {optimizers!r}"
        )
    for name, factory in optimizers.items():
        if not callable(factory):
            raise TypeError(
                f"optimizers[{name!r}] must be a function of jdss.Hyperparameters to an Optax "
                f"transformation, got {type(factory).__name__}; say lambda hyper: "
                "optax.adam(hyper.learning_rate), whose rate a search can change"
            )


def init_slots(factories: Sequence[OptimizerFactory], params: Any, hyper: Hyperparameters) -> Slots:
    """Fresh state for a family of optimizers, in the order of `_slot_numbers`."""
    params = in_float32(params)
    numbers = _slot_numbers(factories, params, hyper)
    slots = {
        number: tuple(jax.tree.leaves(factory(hyper).init(_form(factory, params))))
        for factory, number in zip(factories, numbers, strict=True)
    }
    return tuple(slots[number] for number in sorted(slots))


def apply_gradients(
    factories: Sequence[OptimizerFactory],
    params: Any,
    slots: Slots,
    gradients: Any,
    hyper: Hyperparameters,
) -> tuple[Any, Slots]:
    """New parameters and slots by the optimizer `hyper.optimizer`; only its slot changes."""
    wide, gradients = in_float32((params, gradients))
    # As one vector, of which an optimizer of a user's own is given the parts; alone, as they are.
    if any(map(_is_ours, factories)):
        vector, unravel = ravel_pytree(wide)
        ravel: Callable[[Any], Any] = _vector
    else:
        vector, unravel, ravel = wide, _unchanged, _unchanged

    def branch(factory: OptimizerFactory, position: int) -> Callable[..., tuple[Any, Slots]]:
        def update(slots: Slots, *both: Any) -> tuple[Any, Slots]:
            params, gradients = both if _is_ours(factory) else map(unravel, both)
            transformation = factory(hyper)
            structure = jax.tree.structure(jax.eval_shape(transformation.init, params))
            state = jax.tree.unflatten(structure, slots[position])
            updates, state = transformation.update(gradients, state, params)
            slot = tuple(jax.tree.leaves(state))
            updated = (*slots[:position], slot, *slots[position + 1 :])
            return ravel(optax.apply_updates(params, updates)), updated

        return update

    numbers = _slot_numbers(factories, wide, hyper)
    branches = [branch(*pair) for pair in zip(factories, numbers, strict=True)]
    moved, slots = jax.lax.switch(hyper.optimizer, branches, slots, vector, ravel(gradients))
    return jax.tree.map(lambda new, old: new.astype(old.dtype), unravel(moved), params), slots


def _is_ours(factory: OptimizerFactory) -> bool:
    """Whether it works on a vector, and shares its slot."""
    return factory in OPTIMIZERS.values()


def _vector(tree: Any) -> jax.Array:
    return ravel_pytree(tree)[0]


def _unchanged(tree: Any) -> Any:
    return tree


def _form(factory: OptimizerFactory, params: Any) -> Any:
    """Parameters as an optimizer is given them."""
    return _vector(params) if _is_ours(factory) else params


def in_float32(tree: Any) -> Any:
    """Parameters or gradients of half precision as float32, in which they are updated."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), tree)


def _slot_numbers(
    factories: Sequence[OptimizerFactory], params: Any, hyper: Hyperparameters
) -> list[int]:
    """The slot of each optimizer: one for each layout of state among those of this module.

    They all begin with zeros; one of a user's own, which may not, has a slot of its own.
    """
    numbers: dict[Any, int] = {}
    found = []
    for position, factory in enumerate(factories):
        like = jax.eval_shape(partial(_form, factory), params)
        leaves = jax.tree.leaves(jax.eval_shape(factory(hyper).init, like))
        layout = tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)
        own = -1 if _is_ours(factory) else position
        found.append(numbers.setdefault((own, layout), len(numbers)))
    return found


# By name -----------------------------------------------------------------------------------------


def hyperparameters(
    values: Mapping[str, Any] | None = None,
    *,
    optimizers: Sequence[str] = tuple(OPTIMIZERS),
    **more: Any,
) -> Hyperparameters:
    """Checks hyper-parameters given by name and makes them a pytree.

    Args:
      values: by the names of `Hyperparameters`; `optimizer` and `learning_rate_schedule` are
        names, too. What is missing is taken from `DEFAULTS` (the first of a family of optimizers
        that has no "sgd"). `relative_learning_rate` stands in place of `learning_rate`: as a share
        of the largest at which the optimizer trains, see `LARGEST_LEARNING_RATES`.
      optimizers: the known optimizers, in the order of their indices.
      **more: the same by keyword; these win.

    Raises:
      ValueError: for an unknown name or optimizer, or a value outside its range.
      TypeError: for a value of the wrong type.

    Example:
      >>> hyper = hyperparameters(learning_rate=0.1, optimizer="adam")
      >>> int(hyper.optimizer), hyper.batch_size
      (2, 128)
    """
    optimizers = tuple(optimizers)
    default = DEFAULTS["optimizer"] if DEFAULTS["optimizer"] in optimizers else optimizers[0]
    given = absolute_learning_rate({**(values or {}), **more}, default)
    for name in given:
        _checks.check_choice("a hyper-parameter", name, DEFAULTS)
    merged = {**DEFAULTS, "optimizer": default, **given}
    schedules = tuple(LEARNING_RATE_SCHEDULES)
    for name, known in (("optimizer", optimizers), ("learning_rate_schedule", schedules)):
        _checks.check_choice(name, merged[name], known)
        merged[name] = np.int32(known.index(merged[name]))
    numbers = {"learning_rate", "weight_decay", "momentum", "label_smoothing", "gradient_clipping"}
    if merged["gradient_clipping"] is None:
        merged["gradient_clipping"] = np.float32(np.inf)
        numbers.remove("gradient_clipping")
    for name in sorted(numbers):
        # As it is used: what float32 rounds to 0, to 1 or to infinity is refused here.
        with np.errstate(over="ignore", under="ignore"):
            merged[name] = np.float32(_number(name, merged[name]))
        _checks.check_nonnegative(name, merged[name])
        if name in {"learning_rate", "gradient_clipping"} and merged[name] == 0:
            raise ValueError(f"{name} must be positive, got 0")
        if name in {"momentum", "label_smoothing"} and merged[name] >= 1:
            raise ValueError(f"{name} must be in [0, 1), got {merged[name]}")
    merged["epochs"] = np.int32(_checks.check_positive_int("epochs", merged["epochs"]))
    merged["batch_size"] = _checks.check_positive_int("batch_size", merged["batch_size"])
    return Hyperparameters(**merged)


def _number(name: str, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    return value


def absolute_learning_rate(
    values: Mapping[str, Any], default: str = DEFAULTS["optimizer"]
) -> dict[str, Any]:
    """The same by name with `learning_rate` in place of `relative_learning_rate`.

    `default` is the optimizer where none is named.
    """
    rest = dict(values)
    if "relative_learning_rate" not in rest:
        return rest
    relative = _number("relative_learning_rate", rest.pop("relative_learning_rate"))
    if "learning_rate" in rest:
        raise ValueError("learning_rate must be left out where relative_learning_rate is given")
    optimizer = rest.get("optimizer", default)
    _checks.check_choice("optimizer, of relative_learning_rate,", optimizer, LARGEST_LEARNING_RATES)
    return {"learning_rate": float(relative) * LARGEST_LEARNING_RATES[optimizer], **rest}
