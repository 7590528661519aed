"""Compiling ahead: what a training needs later is compiled while it does something else.

While the first program of a training is compiled and its warm start runs, other threads (XLA needs
no lock of the interpreter) compile the selection and the steps of the other batch sizes that a
search may draw. Who needs a program that is not ready waits, on the ledger's line "compiling".
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdss.gradients import FactoredGradients
from jdss.ledger import Ledger
from jdss.models.calling import input_shapes
from jdss.models.last_layer import apply_last_layer
from jdss.selection.glister import LastLayerObjective
from jdss.selection.strategies import STRATEGIES
from jdss.subset import Select, Subset
from jdss.training.hyperparameters import Hyperparameters
from jdss.training.problem import Problem
from jdss.training.schedule import Schedule
from jdss.training.selection_round import describe_selection
from jdss.training.state import TrainState
from jdss.training.train_on_subset import prepare_training


class Ahead:
    """The programs of one search, with these batch sizes, or of one training.

    `selects_late` says that several trials begin before one selects, and so need the steps first.
    """

    def __init__(self, batch_sizes: Sequence[int] = (), *, selects_late: bool = False) -> None:
        self._batch_sizes, self._selects_late = tuple(batch_sizes), selects_late
        self._pool = ThreadPoolExecutor(1, "jdss-compiles")
        self._started: set[Any] = set()
        self._futures: dict[Any, Future[Any]] = {}

    def start(
        self,
        problem: Problem,
        schedule: Schedule,
        state: TrainState,
        everyone: Subset,
        hyper: Hyperparameters,
        select: Select | None,
    ) -> None:
        """Begins with what a training will need, unless it was begun before."""
        if state.model in self._started:
            return
        # In a search over architectures most models are trained once, with one batch size.
        sizes = () if self._started else self._batch_sizes
        self._started.add(state.model)
        steps: dict[Any, Callable[[], None]] = {
            size: partial(_prepare, problem, state, everyone, replace(hyper, batch_size=size))
            for size in sizes
            if size != hyper.batch_size  # which the training compiles itself
        }
        selection: dict[Any, Callable[[], None]] = {}
        if select is not None and _can_be_tried(schedule):
            selection["select"] = partial(_try_selection, problem, schedule, state, select)
        tasks = steps | selection if self._selects_late else selection | steps
        self._futures |= {name: self._pool.submit(task) for name, task in tasks.items()}

    def wait(self, name: Any, ledger: Ledger) -> None:
        """Waits for "select", or the step of a batch size, where it is being compiled."""
        future = self._futures.pop(name, None)
        if future is not None and not future.cancel():
            with ledger.measure("compiling"):
                future.exception()  # what goes wrong here goes wrong there, with a better traceback

    def close(self) -> None:
        """Compiles nothing more; what is being compiled ends first."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def batch_sizes_of(space: Any) -> tuple[int, ...]:
    """The batch sizes that a mapping of distributions may draw; none are known of a function."""
    distribution = space.get("batch_size") if hasattr(space, "get") else None
    choices: Iterable[Any] = getattr(distribution, "choices", ())
    return tuple(size for size in choices if isinstance(size, int))


def _prepare(problem: Problem, state: TrainState, everyone: Subset, hyper: Hyperparameters) -> None:
    """Compiles the step for a state like this one, whose memory training has given up by now."""
    like = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state)
    prepare_training(like, problem.examples, everyone, hyper)


def _can_be_tried(schedule: Schedule) -> bool:
    """Whether a selection can be made of gradients that are all zero: one's own may refuse.

    On several devices it would be run beside a training: each device may begin with another of the
    two programs, and then they wait for one another's collectives for ever.
    """
    strategy, selection = schedule.strategy, schedule.selection
    exact = (selection.gradients, selection.outer) == ("last_layer", "training")
    known = strategy.needs_gradients and strategy.name in STRATEGIES and exact
    return known and jax.device_count() == 1


def _try_selection(problem: Problem, schedule: Schedule, state: TrainState, select: Select) -> None:
    """Selects from gradients of the right shapes that are zero, with which solvers end at once."""
    one = input_shapes(problem.examples.inputs)
    layer = jax.eval_shape(partial(apply_last_layer, state.model), state.variables, one)
    size = schedule.num_candidates(len(problem.train))
    logits, inputs = (
        jax.device_put(np.zeros((size, part.shape[1]), np.float32), jax.local_devices()[0])
        for part in layer
    )
    options = dict(schedule.strategy.options)
    if schedule.strategy.needs_objective:
        labels = jnp.asarray(problem.labels_of(problem.train[:size]))
        objective = LastLayerObjective(logits, inputs, labels, jnp.float32(0.0), state.loss)
        options |= {"objective": objective, "learning_rate": jnp.float32(0.0)}
    gradients, budget = FactoredGradients(logits, inputs), schedule.budget(len(problem.train))
    subset = select(gradients, budget, key=jax.random.key(0), **options)
    describe_selection(schedule.strategy.name, gradients, subset)
