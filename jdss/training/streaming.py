"""Training on examples that stay on the host: blocks of steps are sent while others are made.

The order of the examples, what is random and every step are those of `train_on_subset` on examples
that lie on the device; only where a step's batch comes from is another matter. A block's order is
asked for before the steps of the block before it begin, so that its examples are gathered and sent
while these run.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdss import parallel
from jdss.data.examples import Examples, HostExamples
from jdss.data.rows import SUBSET_SHARE, device_memory
from jdss.subset import Subset
from jdss.training.hyperparameters import Hyperparameters
from jdss.training.problem import Problem
from jdss.training.selection_round import pad_subset
from jdss.training.state import TrainState
from jdss.training.train_on_subset import (
    Loop,
    Share,
    TrainMetrics,
    advance,
    own_places,
    run_steps,
    steps_per_epoch,
    visits,
)

BLOCK_BYTES = 1 << 26
"""About so many bytes of inputs are sent at once; two blocks are on the device."""

_MOST_STEPS = 64


def place_subset(subset: Subset, problem: Problem) -> tuple[Examples | HostExamples, Subset]:
    """The examples that a subset is trained on, and where its own are among them.

    Examples on the device stay there, all of them. Of those on the host, the subset is put on the
    device where it takes at most a quarter of its memory; otherwise it is sent by blocks, too.

    Args:
      subset: positions among the training examples.
      problem: what is trained on.
    """
    examples = problem.examples
    if not isinstance(examples, HostExamples):
        return examples, pad_subset(subset, problem)
    chosen = problem.train[np.asarray(subset.indices)]
    if len(chosen) * examples.bytes_each > SUBSET_SHARE * device_memory():
        return examples, Subset(jnp.asarray(chosen), subset.weights, subset.num_selected)
    places = jnp.arange(len(chosen), dtype=jnp.int32)
    return examples.on_device(chosen), Subset(places, subset.weights, subset.num_selected)


class _Order(NamedTuple):
    """Which examples the steps of a block visit."""

    indices: jax.Array  # int32[s, b]
    weights: jax.Array  # float32[s, b]


def train_by_blocks(
    state: TrainState,
    data: HostExamples,
    subset: Subset,
    hyper: Hyperparameters,
    key: jax.Array,
    num_steps: Any,
    total_steps: Any,
    first_step: Any,
) -> tuple[TrainState, TrainMetrics]:
    """`train_on_subset` of examples on the host; its numbers of steps must be concrete."""
    num_steps, first_step = int(num_steps), int(first_step)
    last_step = jnp.int32(int(total_steps) or int(state.step) + num_steps)
    epoch_steps = steps_per_epoch(int((np.asarray(subset.weights) > 0).sum()), hyper.batch_size)
    devices = parallel.num_devices()
    places = hyper.batch_size + -hyper.batch_size % devices
    fitting = BLOCK_BYTES // max(data.bytes_each * places, 1)
    steps = max(min(fitting, epoch_steps, _MOST_STEPS), 1)

    def order_of(start: int) -> _Order:
        return _order(subset, key, jnp.int32(start), hyper.batch_size, steps, places)

    def send(order: _Order) -> tuple[Examples, jax.Array]:
        return data.on_device(np.asarray(order.indices).ravel()), order.weights

    end = first_step + num_steps
    zero = jnp.zeros((), jnp.float32)
    loop = Loop(state, jnp.int32(first_step), zero, zero)
    block = send(order_of(first_step)) if num_steps else None
    for start in range(first_step, end, steps):
        assert block is not None
        before, coming = loop.loss, start + steps
        order = order_of(coming) if coming < end else None
        loop = Loop(
            *_train_block(
                *loop, *block, hyper, key, jnp.int32(start), jnp.int32(min(coming, end)), last_step
            )
        )
        block = None if order is None else send(order)
        if not np.isfinite(before):
            break  # the block before diverged; the steps of this one were not made
    taken = loop.taken - first_step
    metrics = TrainMetrics(loop.total / taken, taken, ~jnp.isfinite(loop.loss))
    return loop.state, metrics


@partial(jax.jit, static_argnames=("batch_size", "steps", "places"))
def _order(
    subset: Subset, key: jax.Array, start: jax.Array, batch_size: int, steps: int, places: int
) -> _Order:
    visit = visits(subset, batch_size, key)
    in_batch = jnp.arange(places)
    return _Order(*jax.vmap(lambda step: visit(start + step, in_batch))(jnp.arange(steps)))


def _run_block(
    device: jax.Array,
    state: TrainState,
    taken: jax.Array,
    loss: jax.Array,
    total: jax.Array,
    data: Examples,
    weights: jax.Array,
    hyper: Hyperparameters,
    key: jax.Array,
    start: jax.Array,
    end: jax.Array,
    last_step: jax.Array,
) -> tuple[Any, ...]:
    in_batch = own_places(device, hyper.batch_size)

    def step(loop: Loop) -> Loop:
        step_in_block = loop.taken - start
        places = step_in_block * weights.shape[1] + in_batch
        share = Share(places, weights[step_in_block, in_batch], in_batch, device)
        return advance(loop, data, share, hyper, key, last_step)

    return tuple(run_steps(step, Loop(state, taken, loss, total), end))


_train_block = parallel.parallel(_run_block, donate=(0,))
