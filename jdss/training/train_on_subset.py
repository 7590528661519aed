"""The function that a trial calls: training on a fixed weighted subset, compiled once.

All steps of a stretch run in one compiled loop under `pmap`. What a search varies is traced:
the hyper-parameters, the number of steps, the subset and, since its places of weight 0 are not
visited, also the subset's size. Only the batch size, a shape, compiles anew.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jdss import _checks, parallel
from jdss.data.examples import Examples, HostExamples, training_batch
from jdss.models.batch_norm import whole_batch_statistics
from jdss.models.calling import apply_model
from jdss.subset import Subset
from jdss.training.hyperparameters import LEARNING_RATE_SCHEDULES, Hyperparameters
from jdss.training.optimizers import apply_gradients, in_float32
from jdss.training.shuffle import shuffled
from jdss.training.state import TrainState

STEP = 2
"""What a step of training is; another number where trainings cannot be compared across a change.

1: a batch's weights were divided by their own sum, and an epoch's last batch was what was left.
2: weights are divided by the subset's mean, and an epoch's batches are of one size.
"""


class TrainMetrics(NamedTuple):
    """What a stretch of training reports.

    Attributes:
      loss: float32[], the mean over the steps of each batch's weighted loss; NaN where no step
        was made.
      num_steps: int32[], the steps made: fewer than asked for where the loss was not finite.
      diverged: bool[], whether the loss of a step was NaN or infinite. Training stops there.

    Made by `jdss.train_on_subset`.
    """

    loss: jax.Array
    num_steps: jax.Array
    diverged: jax.Array


def steps_per_epoch(size: Any, batch_size: int) -> Any:
    """ceil(size / batch_size): none is dropped; they are of equal size, but for one example."""
    return -(-size // batch_size)


def train_on_subset(
    state: TrainState,
    data: Examples | HostExamples,
    subset: Subset,
    hyperparameters: Hyperparameters,
    key: jax.Array,
    *,
    num_steps: int | jax.Array | None = None,
    total_steps: int | jax.Array | None = None,
    first_step: int | jax.Array = 0,
) -> tuple[TrainState, TrainMetrics]:
    """Trains on a fixed weighted subset: pure, `pmap`ped, compiled once for each batch size.

    The loss of a batch B is `Σ_{i∈B} w_i ℓ_i / (|B| w̄)`, with ℓ the state's loss, the softmax
    cross-entropy if nothing else was asked for, and w̄ the mean of the subset's positive weights.
    Its gradient is in the mean, over the random order, `Σ_i w_i ∇ℓ_i / Σ_i w_i`: of the direction
    that GRAD-MATCH and CRAIG match. (Were each batch's weights divided by their own sum, as is
    often done, an example would count the less for its weight, the larger that is.) Only the
    proportions of the weights count, not their size: gradients that GRAD-MATCH chooses are larger
    than the average, and so are the steps taken on them.

    An epoch visits every place of positive weight once, in a new random order, in
    ceil(size / batch_size) batches whose sizes differ by at most one. What is left over after
    full batches would be a step as long as the others on a handful of examples: of 900 in batches
    of 128, every eighth step would follow the gradient of four. With several devices, of one
    process or of several, every batch is split over them; the gradients are those of the whole
    batch, and so are the statistics of BatchNorm. The number of devices changes no result but for
    rounding and the masks of dropout, which each device draws for itself. Every batch is filled up
    to the batch size with the epoch's next examples at weight 0; only BatchNorm sees them.

    Args:
      state: the state of training; its memory is given up (donated).
      data: the stored examples. Those that stay on the host are sent by blocks of steps, to the
        same result (see `jdss.training.streaming`).
      subset: indices int32[k] into them and weights float32[k]. Places of weight 0 are not
        visited, so subsets of different sizes, padded to one k, share a compilation.
      hyperparameters: see `jdss.Hyperparameters`; `epochs` is not used here.
      key: a PRNG key for the order of the examples, augmentation and dropout.
      num_steps: how many updates; may be traced. None means one epoch. `fit` counts an epoch by
        the budget, also where fewer places than that have a positive weight.
      total_steps: where a learning rate schedule ends, counted as `state.step`; may be traced.
        None means at the end of this stretch.
      first_step: how many updates of this stretch were made before, with the same key: a stretch
        that is trained in parts ends where it would have ended in one; may be traced.

    Returns:
      The new state, and `TrainMetrics`.

    Raises:
      TypeError: for indices or a number of steps that are not integers.
      ValueError: for shapes that disagree; where values are concrete, also for indices outside
        the data, weights that are negative or not finite, and a subset without weight.

    Example:
      >>> import jdss
      >>> images, labels = jnp.ones((8, 16, 16, 1)), jnp.arange(8) % 2
      >>> data = jdss.make_examples(images, labels)
      >>> state = jdss.init_state(jdss.models.LeNet(2), images, jax.random.key(0))
      >>> subset = jdss.uniform(8, 4, key=jax.random.key(1))
      >>> hyper = jdss.hyperparameters(batch_size=2)
      >>> state, metrics = jdss.train_on_subset(state, data, subset, hyper, jax.random.key(2))
      >>> int(state.step)
      2
    """
    if not isinstance(hyperparameters, Hyperparameters):
        raise TypeError(
            "hyperparameters must be made by jdss.hyperparameters(...), got "
            f"{type(hyperparameters).__name__}"
        )
    if subset.indices.shape != subset.weights.shape or subset.indices.ndim != 1:
        raise ValueError(
            "subset must have indices and weights of one shape (k,), got "
            f"{subset.indices.shape} and {subset.weights.shape}"
        )
    # Of the same types whoever made it: others would compile the function again.
    subset = Subset(
        indices=_checks.check_integers("subset.indices", subset.indices),
        weights=jnp.asarray(subset.weights, jnp.float32),
        num_selected=jnp.asarray(subset.num_selected, jnp.int32),
    )
    if num_steps is None:
        num_steps = steps_per_epoch((subset.weights > 0).sum(), hyperparameters.batch_size)
    num_steps = _checks.check_integers("num_steps", num_steps)
    if _checks.is_concrete(num_steps) and int(num_steps) < 0:
        raise ValueError(f"num_steps must be at least 0, got {int(num_steps)}")
    # 0, which no training has, stands for None: the same program serves both.
    total_steps = _checks.check_integers("total_steps", 0 if total_steps is None else total_steps)
    first_step = _checks.check_integers("first_step", first_step)
    if _checks.is_concrete(subset):
        with jax.ensure_compile_time_eval():
            _check_subset(subset, len(data))
    if isinstance(data, HostExamples):
        from jdss.training.streaming import train_by_blocks

        return train_by_blocks(
            state, data, subset, hyperparameters, key, num_steps, total_steps, first_step
        )
    return _train(state, data, subset, hyperparameters, key, num_steps, total_steps, first_step)


def prepare_training(
    state: TrainState, data: Examples | HostExamples, subset: Subset, hyper: Hyperparameters
) -> None:
    """Compiles what `train_on_subset` needs for such arguments, and trains nothing."""
    if not isinstance(data, HostExamples):
        steps = [jnp.int32(0)] * 3
        _train.prepare(state, data, subset, hyper, jax.random.key(0), *steps)  # type: ignore[attr-defined]


def _check_subset(subset: Subset, num_examples: int) -> None:
    # By NumPy: there is nothing to compile, and a device is read twice.
    indices, weights = np.asarray(subset.indices), np.asarray(subset.weights)
    if len(indices) and not 0 <= indices.min() <= indices.max() < num_examples:
        raise ValueError(f"subset.indices must be in 0..{num_examples - 1}")
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError("subset.weights must be finite and non-negative")
    if not (weights > 0).any():
        raise ValueError("subset.weights must have a positive weight: there is nothing to visit")


class Loop(NamedTuple):
    """Where a stretch of training is."""

    state: TrainState
    taken: jax.Array  # int32[], steps made of the stretch
    loss: jax.Array  # float32[], of the last step
    total: jax.Array  # float32[], sum of the steps' losses


class Share(NamedTuple):
    """A device's share of a batch."""

    indices: jax.Array  # int32[b], into the stored examples
    weights: jax.Array  # float32[b], w_i / (|B| w̄), and 0 for what fills up the batch
    places: jax.Array  # int32[b], in the batch; from batch_size on, they are none
    device: jax.Array  # int32[]


def _run(
    device: jax.Array,
    state: TrainState,
    data: Examples,
    subset: Subset,
    hyper: Hyperparameters,
    key: jax.Array,
    num_steps: jax.Array,
    total_steps: jax.Array,
    first_step: jax.Array,
) -> tuple[TrainState, TrainMetrics]:
    last_step = jnp.where(total_steps > 0, total_steps, state.step + num_steps)
    visit = visits(subset, hyper.batch_size, key)
    in_batch = own_places(device, hyper.batch_size)

    def step(loop: Loop) -> Loop:
        share = Share(*visit(loop.taken, in_batch), in_batch, device)
        return advance(loop, data, share, hyper, key, last_step)

    zero = jnp.zeros((), jnp.float32)
    loop = run_steps(step, Loop(state, first_step, zero, zero), first_step + num_steps)
    taken = loop.taken - first_step
    return loop.state, TrainMetrics(
        loss=loop.total / taken,
        num_steps=taken,
        diverged=~jnp.isfinite(loop.loss),
    )


def own_places(device: jax.Array, batch_size: int) -> jax.Array:
    """The places int32[b] of a batch that a device works on; those past its end are none."""
    share_size = -(-batch_size // jax.lax.axis_size(parallel.AXIS))
    return device * share_size + jnp.arange(share_size)


def visits(
    subset: Subset, batch_size: int, key: jax.Array
) -> Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """The order in which a stretch of training visits a subset.

    Returns:
      A function of a step int32[], counted from the stretch's beginning, and of places int32[b] in
      its batch B, to the examples' indices int32[b] and their weights w_i / (|B| w̄) float32[b].
    """
    visited = subset.weights > 0
    # At least 1: with no weight at all, which only traced weights can have, the loss is NaN.
    size = jnp.maximum(visited.sum(dtype=jnp.int32), 1)
    places = jnp.flatnonzero(visited, size=len(subset.indices), fill_value=0)
    # By the largest first: sums neither overflow nor vanish, whatever the weights' size.
    proportions = subset.weights / subset.weights.max()
    mean = proportions.sum() / size
    epoch_steps = steps_per_epoch(size, batch_size)
    smallest, larger = size // epoch_steps, size % epoch_steps  # so many have one example more

    def visit(step: jax.Array, in_batch: jax.Array) -> tuple[jax.Array, jax.Array]:
        epoch, batch = step // epoch_steps, step % epoch_steps
        start = batch * smallest + jnp.minimum(batch, larger)
        batch_examples = smallest + (batch < larger)
        # Places past its end show other batches' examples, at weight 0: BatchNorm sees real ones.
        position = (start + in_batch) % size
        chosen = places[shuffled(position, size, jax.random.fold_in(key, epoch))]
        weights = proportions[chosen] / (mean * batch_examples)
        return subset.indices[chosen], jnp.where(in_batch < batch_examples, weights, 0.0)

    return visit


def run_steps(step: Callable[[Loop], Loop], start: Loop, end: jax.Array) -> Loop:
    """Steps until `end` are made, or a loss is not finite."""

    def goes_on(loop: Loop) -> jax.Array:
        return (loop.taken < end) & jnp.isfinite(loop.loss)

    return jax.lax.while_loop(goes_on, step, start)


def advance(
    loop: Loop,
    data: Examples,
    share: Share,
    hyper: Hyperparameters,
    key: jax.Array,
    last_step: jax.Array,
) -> Loop:
    """One step of the loop, on this device's share of its batch."""
    step_key = jax.random.fold_in(key, -1 - loop.taken)
    state, loss = _update(loop.state, data, share, hyper, step_key, last_step)
    return Loop(state, loop.taken + 1, loss, loop.total + loss)


def _update(
    state: TrainState,
    data: Examples,
    share: Share,
    hyper: Hyperparameters,
    key: jax.Array,
    last_step: jax.Array,
) -> tuple[TrainState, jax.Array]:
    """One step on this device's share of a batch; gradients are summed over the devices."""
    augmentation_key, dropout_key = jax.random.split(key)
    inputs = training_batch(
        data,
        share.indices,
        augmentation_key,
        places=share.places,
        batch_size=hyper.batch_size,
    )
    labels = data.labels[share.indices]

    def statistics() -> AbstractContextManager[None]:
        if jax.lax.axis_size(parallel.AXIS) == 1:
            return nullcontext()  # one device holds the whole batch
        return whole_batch_statistics(parallel.AXIS, share.places < hyper.batch_size)

    def weighted_loss(params: Any) -> tuple[jax.Array, Any]:
        with statistics():
            outputs, model_state = apply_model(
                state.model,
                {"params": params, **state.model_state},
                inputs,
                train=True,
                key=jax.random.fold_in(dropout_key, share.device),
                mutable=list(state.model_state),
            )
        losses = state.loss.values(outputs, labels, hyper.label_smoothing)
        chex.assert_shape(losses, (len(labels),))
        return jnp.sum(share.weights * losses), model_state

    (loss, model_state), gradients = jax.value_and_grad(weighted_loss, has_aux=True)(state.params)
    loss, gradients = jax.lax.psum((loss, gradients), parallel.AXIS)
    scheduled = replace(hyper, learning_rate=_learning_rate(hyper, state.step, last_step))
    params, slots = apply_gradients(
        state.optimizers,
        state.params,
        state.optimizer_slots,
        _clip(in_float32(gradients), hyper.gradient_clipping),
        scheduled,
    )
    new_state = replace(
        state,
        params=params,
        model_state=jax.tree.map(_mean_over_devices, model_state),
        optimizer_slots=slots,
        step=state.step + 1,
    )
    return new_state, loss


def _mean_over_devices(leaf: jax.Array) -> jax.Array:
    """Of statistics; counters and the like are the same on every device."""
    return jax.lax.pmean(leaf, parallel.AXIS) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def _learning_rate(hyper: Hyperparameters, step: jax.Array, last_step: jax.Array) -> jax.Array:
    progress = jnp.minimum(step / jnp.maximum(last_step, 1), 1.0)
    factors = jnp.stack([schedule(progress) for schedule in LEARNING_RATE_SCHEDULES.values()])
    return hyper.learning_rate * factors[hyper.learning_rate_schedule]


def _clip(gradients: Any, largest: jax.Array) -> Any:
    """Scales gradients whose norm exceeds the largest one allowed down to it."""
    clipping = optax.clip_by_global_norm(largest)
    return clipping.update(gradients, clipping.init(gradients))[0]


_train = parallel.parallel(_run, donate=(0,))
