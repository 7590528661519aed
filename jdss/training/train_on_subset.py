"""The function that a trial calls: training on a fixed weighted subset, compiled once.

All steps of a stretch run in one compiled loop under `pmap`. What a search varies is traced:
the hyper-parameters, the number of steps, the subset and, since its places of weight 0 are not
visited, also the subset's size. Only the batch size, a shape, compiles anew.

Examples that stay on the host are sent by blocks of steps, in the same order, while the steps of
the block before are made: the loop is the same one, and is fed from a block instead of from all.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jdss import _checks, parallel
from jdss.data.examples import Examples, HostExamples, training_batch
from jdss.data.rows import bytes_each
from jdss.models.calling import apply_model
from jdss.models.layers import whole_batch_statistics
from jdss.subset import Subset
from jdss.training.hyperparameters import (
    LEARNING_RATE_SCHEDULES,
    Hyperparameters,
    apply_gradients,
    in_float32,
)
from jdss.training.state import TrainState
from jdss.training.visits import Order, check_visited, order_of, steps_per_epoch, visits

STEP = 2
"""What a step of training is; another number where trainings cannot be compared across a change.

1: a batch's weights were divided by their own sum, and an epoch's last batch was what was left.
2: weights are divided by the subset's mean, and an epoch's batches are of one size.
"""

BLOCK_BYTES = 1 << 26
"""About so many bytes of inputs are sent from the host at once; two blocks are on the device."""

_MOST_STEPS = 64  # in a block


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

    The loss of a batch B is `Σ_{i∈B} w_i ℓ_i / (|B| w̄)`, with ℓ the state's loss and w̄ the mean of
    the subset's positive weights. Its gradient is in the mean, over the random order,
    `Σ_i w_i ∇ℓ_i / Σ_i w_i`, of the direction that GRAD-MATCH and CRAIG match; it would not be if
    each batch's weights were divided by their own sum. Only the weights' proportions count.

    An epoch visits every place of positive weight once, in a new random order, in
    ceil(size / batch_size) batches whose sizes differ by at most one. They are filled up to the
    batch size with the epoch's next examples at weight 0, which only BatchNorm sees. Several
    devices, of one process or of several, split every batch; gradients and the statistics of
    BatchNorm are those of the whole batch. The number of devices changes no result but for
    rounding and the masks of dropout, which each device draws for itself.

    Args:
      state: the state of training; its memory is given up (donated).
      data: the stored examples. Those on the host are sent by blocks of steps, to the same result.
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
    # Of the same types whoever made it: others would compile the function again.
    subset = Subset(
        indices=_checks.check_integers("subset.indices", subset.indices),
        weights=jnp.asarray(subset.weights, jnp.float32),
        num_selected=jnp.asarray(subset.num_selected, jnp.int32),
    )
    check_visited(subset, len(data))
    if num_steps is None:
        num_steps = steps_per_epoch((subset.weights > 0).sum(), hyperparameters.batch_size)
    num_steps = _checks.check_integers("num_steps", num_steps)
    if _checks.is_concrete(num_steps) and int(num_steps) < 0:
        raise ValueError(f"num_steps must be at least 0, got {int(num_steps)}")
    # 0, which no training has, stands for None: the same program serves both.
    total_steps = _checks.check_integers("total_steps", 0 if total_steps is None else total_steps)
    first_step = _checks.check_integers("first_step", first_step)
    steps = _Steps(first_step, num_steps, total_steps)
    train: Any = _train_by_blocks if isinstance(data, HostExamples) else _train
    order, start = order_of(subset), _at_start(steps)
    state, _, metrics = train(state, start, data, order, hyperparameters, key, steps)
    return state, metrics


def prepare_training(
    state: TrainState, data: Examples | HostExamples, subset: Subset, hyper: Hyperparameters
) -> None:
    """Compiles what `train_on_subset` needs for such arguments, and trains nothing."""
    if not isinstance(data, HostExamples):
        steps = _Steps(*[jnp.int32(0)] * 3)
        key = jax.random.key(0)
        order = order_of(subset)
        _train.prepare(state, _at_start(steps), data, order, hyper, key, steps)  # type: ignore[attr-defined]


# The compiled loop -------------------------------------------------------------------------------


class _Steps(NamedTuple):
    """The numbers int32[] that `train_on_subset` takes."""

    first: jax.Array
    num: jax.Array
    total: jax.Array  # 0 for None


class _Progress(NamedTuple):
    """Where a stretch of training is."""

    taken: jax.Array  # int32[], steps made of the stretch
    loss: jax.Array  # float32[], of the last step
    total: jax.Array  # float32[], sum of the steps' losses


def _at_start(steps: _Steps) -> _Progress:
    return _Progress(steps.first, np.float32(0), np.float32(0))  # type: ignore[arg-type]


class _Share(NamedTuple):
    """A device's share of a batch."""

    indices: jax.Array  # int32[b], into the stored examples
    weights: jax.Array  # float32[b], w_i / (|B| w̄), and 0 for what fills up the batch
    places: jax.Array  # int32[b], in the batch; from batch_size on, they are none
    device: jax.Array  # int32[]


def _run(
    device: jax.Array,
    state: TrainState,
    progress: _Progress,
    data: Examples,
    order: Order | jax.Array,
    hyper: Hyperparameters,
    key: jax.Array,
    steps: _Steps,
) -> tuple[TrainState, _Progress, TrainMetrics]:
    """The steps of a stretch, on this device's share of every batch.

    Or only the next s steps, on data that lie in the order in which they are visited: then `order`
    are their weights float32[s, b].
    """
    start, end = progress.taken, steps.first + steps.num
    last_step = jnp.where(steps.total > 0, steps.total, state.step - (start - end))
    if isinstance(order, Order):
        visit = visits(order, hyper.batch_size, key)
    else:
        end = jnp.minimum(end, start + len(order))

        def visit(step: jax.Array, in_batch: jax.Array) -> tuple[jax.Array, jax.Array]:
            row = step - start
            return row * order.shape[1] + in_batch, order[row, in_batch]

    share_size = -(-hyper.batch_size // jax.lax.axis_size(parallel.AXIS))
    places = device * share_size + jnp.arange(share_size)

    def goes_on(loop: tuple[TrainState, _Progress]) -> jax.Array:
        return (loop[1].taken < end) & jnp.isfinite(loop[1].loss)

    def step(loop: tuple[TrainState, _Progress]) -> tuple[TrainState, _Progress]:
        state, (taken, _, total) = loop
        share = _Share(*visit(taken, places), places, device)
        step_key = jax.random.fold_in(key, -1 - taken)
        state, loss = _update(state, data, share, hyper, step_key, last_step)
        return state, _Progress(taken + 1, loss, total + loss)

    state, progress = jax.lax.while_loop(goes_on, step, (state, progress))
    taken = progress.taken - steps.first
    metrics = TrainMetrics(progress.total / taken, taken, ~jnp.isfinite(progress.loss))
    return state, progress, metrics


_train = parallel.parallel(_run, donate=(0,))


def _update(
    state: TrainState,
    data: Examples,
    share: _Share,
    hyper: Hyperparameters,
    key: jax.Array,
    last_step: jax.Array,
) -> tuple[TrainState, jax.Array]:
    """One step on this device's share of a batch; gradients are summed over the devices."""
    augmentation_key, dropout_key = jax.random.split(key)
    inputs = training_batch(
        data, share.indices, augmentation_key, places=share.places, batch_size=hyper.batch_size
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
    # Gradients whose norm exceeds the largest one allowed are scaled down to it.
    clipping = optax.clip_by_global_norm(hyper.gradient_clipping)
    gradients, _ = clipping.update(in_float32(gradients), clipping.init(None))
    scheduled = replace(hyper, learning_rate=_learning_rate(hyper, state.step, last_step))
    params, slots = apply_gradients(
        state.optimizers, state.params, state.optimizer_slots, gradients, scheduled
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


# Examples on the host ---------------------------------------------------------------------------


def _train_by_blocks(
    state: TrainState,
    progress: _Progress,
    data: HostExamples,
    order: Order,
    hyper: Hyperparameters,
    key: jax.Array,
    steps: _Steps,
) -> tuple[TrainState, _Progress, TrainMetrics]:
    """`_train` of examples on the host; the numbers of steps must be concrete."""
    width = hyper.batch_size + -hyper.batch_size % jax.device_count()
    epoch_steps = steps_per_epoch(int(order.size), hyper.batch_size)
    fitting = BLOCK_BYTES // max(bytes_each(data.rows) * width, 1)
    size = max(min(fitting, epoch_steps, _MOST_STEPS), 1)
    first = int(steps.first)
    starts = range(first, first + max(int(steps.num), 1), size)
    # Asked for now: later, each would have to wait for the steps that are being made.
    blocks = [
        _look_up(order, key, jnp.int32(start), hyper.batch_size, size, width) for start in starts
    ]

    examples = data.on_device(np.asarray(blocks[0][0]).ravel())
    for number, (_, weights) in enumerate(blocks):
        state, progress, metrics = _train(state, progress, examples, weights, hyper, key, steps)
        if number + 1 < len(blocks):  # sent while the steps are being made
            examples = data.on_device(np.asarray(blocks[number + 1][0]).ravel())
        if metrics.diverged:
            break
    return state, progress, metrics


@partial(jax.jit, static_argnames=("batch_size", "steps", "width"))
def _look_up(
    order: Order, key: jax.Array, start: jax.Array, batch_size: int, steps: int, width: int
) -> tuple[jax.Array, jax.Array]:
    """The indices int32[s, b] and weights float32[s, b] that steps from `start` on visit."""
    visit, in_batch = visits(order, batch_size, key), jnp.arange(width)
    return jax.vmap(lambda step: visit(start + step, in_batch))(jnp.arange(steps))
