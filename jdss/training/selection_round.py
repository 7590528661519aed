"""One selection round of a training run: candidates, gradients, selection, placing."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdss.data.examples import Examples, HostExamples
from jdss.data.rows import SUBSET_SHARE, bytes_each, device_memory
from jdss.gradients import FactoredGradients, Gradients
from jdss.ledger import Ledger
from jdss.selection.glister import LastLayerObjective
from jdss.selection.strategies import STRATEGIES, Strategy
from jdss.subset import Select, Subset, class_shares
from jdss.training.failures import TrainingDivergedError, is_finite
from jdss.training.forward import compute_last_layer, compute_projected_gradients, last_layer_errors
from jdss.training.hyperparameters import Hyperparameters
from jdss.training.problem import Problem
from jdss.training.schedule import Schedule
from jdss.training.state import TrainState


def everything(problem: Problem) -> Subset:
    """All training examples at weight 1, padded as every subset is."""
    size = len(problem.train)
    whole = Subset(np.arange(size, dtype=np.int32), np.ones(size, np.float32), np.int32(size))  # type: ignore[arg-type]
    return _padded(whole, problem)


def _padded(subset: Subset, problem: Problem) -> Subset:
    """Positions among the training examples to a `Subset` of examples, of one shape for all."""
    padding = len(problem.examples) - len(subset.indices)
    chosen = problem.train[np.asarray(subset.indices)]
    return Subset(
        indices=jnp.asarray(np.pad(chosen, (0, padding)).astype(np.int32)),
        weights=jnp.asarray(np.pad(np.asarray(subset.weights), (0, padding))),
        num_selected=subset.num_selected,
    )


def place_subset(subset: Subset, problem: Problem) -> tuple[Examples | HostExamples, Subset]:
    """The examples that a subset is trained on, and where its own are among them.

    Examples on the device stay there, all of them. Of those on the host, the subset is put on the
    device where it takes at most a quarter of its memory; otherwise it is sent by blocks, too.
    """
    examples = problem.examples
    if not isinstance(examples, HostExamples):
        return examples, _padded(subset, problem)
    chosen = problem.train[np.asarray(subset.indices)]
    if len(chosen) * bytes_each(examples.rows) > SUBSET_SHARE * device_memory():
        return examples, replace(subset, indices=jnp.asarray(chosen))
    places = jnp.arange(len(chosen), dtype=jnp.int32)
    return examples.on_device(chosen), replace(subset, indices=places)


def lift(schedule: Schedule, problem: Problem, batch_size: int) -> Select | None:
    """The selection method applied to everything, to each class or to mini-batch sums.

    A function of one's own is not told what the candidates are: then none of its options may have
    an entry for each example.
    """
    strategy, size = schedule.strategy, len(problem.train)
    is_own = all(strategy.select is not known.select for known in STRATEGIES.values())
    if schedule.candidates < 1 and is_own:
        for name, option in strategy.options.items():
            if any(np.shape(leaf)[:1] == (size,) for leaf in jax.tree.leaves(option)):
                raise ValueError(
                    f"candidates must be 1 with the option {name!r}, which has an entry for each "
                    f"of the {size} training examples; got {schedule.candidates}"
                )
    labels, num_classes = candidate_labels(schedule, problem), _strata(problem)[1]
    return strategy.lifted(labels, num_classes, batch_size)


def candidate_labels(schedule: Schedule, problem: Problem) -> np.ndarray:
    """int32[m], the labels of the candidates: the same at every selection, class after class."""
    labels, num_classes = _strata(problem)
    if schedule.candidates == 1:
        return labels
    sizes = np.bincount(labels, minlength=num_classes)
    shares = class_shares(sizes, schedule.num_candidates(len(labels)))
    return np.repeat(np.arange(num_classes, dtype=np.int32), shares)


def _strata(problem: Problem) -> tuple[np.ndarray, int]:
    """The labels int32[n] of the training examples, and how many there are; one without classes."""
    if problem.num_classes is None:
        return np.zeros(len(problem.train), np.int32), 1
    return problem.labels_of(problem.train), problem.num_classes


def draw_candidates(schedule: Schedule, problem: Problem, key: jax.Array) -> np.ndarray:
    """The examples that one selection chooses from: all, or a random part of each class.

    They are int32[m], distinct positions in `problem.train`: in their own order for mini-batches,
    which are consecutive, and otherwise class after class, as `candidate_labels`, so that nothing
    compiles anew from one selection to the next. A part is in no paper; its kin is stochastic
    greedy, which draws candidates for every single pick (Mirzasoleiman et al., AAAI 2015).
    """
    size = len(problem.train)
    if schedule.candidates == 1:
        return np.arange(size, dtype=np.int32)
    labels, num_classes = _strata(problem)
    sizes = np.bincount(candidate_labels(schedule, problem), minlength=num_classes)
    generator = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    order = generator.permutation(size)
    drawn = [np.sort(order[labels[order] == label][:share]) for label, share in enumerate(sizes)]
    positions = np.concatenate(drawn).astype(np.int32)
    return np.sort(positions) if schedule.strategy.lifting == "per_batch" else positions


def select_subset(
    problem: Problem,
    state: TrainState,
    schedule: Schedule,
    select: Select | None,
    budget: int,
    hyper: Hyperparameters,
    key: jax.Array,
    ledger: Ledger,
) -> tuple[Subset, dict[str, Any]]:
    """A subset, of positions in `problem.train`, and what `describe_selection` says of it."""
    assert select is not None
    strategy = schedule.strategy
    gradients: Any = len(problem.train)
    options, known = dict(strategy.options), dict[str, Any]()
    whole = problem
    if strategy.needs_importance:
        options["importance"] = schedule.importance
    if strategy.needs_gradients:
        with ledger.measure("gradients"):
            # One draw for all that follow; `key` itself selects.
            drawn = draw_candidates(schedule, problem, jax.random.fold_in(key, 2**31 - 2))
            problem = replace(problem, train=problem.train[drawn])
            gradients, known = _compute(problem, state, schedule, hyper, key)
            options = _with_known(options, known)
            finite = is_finite((gradients, known))
        if not finite:
            raise TrainingDivergedError("the per-example gradients are not finite")
    with ledger.measure("solving"):
        subset = jax.block_until_ready(select(gradients, budget, key=key, **options))
    with ledger.measure("other"):
        target = _target_of_all(strategy, options, problem)
        # Parts of the own class are, in each class, of another row of the layer: no sum of all.
        of_one_kind = schedule.selection.gradients != "own_class"
        name = strategy.name if of_one_kind else "own_class"
        told = describe_selection(name, gradients, subset, target)
        if schedule.candidates < 1:
            subset = _among_all(subset, drawn, schedule, len(whole.train))
        return subset, told


def _with_known(options: dict[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The caller's options, and what is known beside them, also of each class."""
    both = {**known, **options}
    if classes := {**(known.get("class_options") or {}), **(options.get("class_options") or {})}:
        both["class_options"] = classes
    return both


def _target_of_all(
    strategy: Strategy, options: Mapping[str, Any], problem: Problem
) -> jax.Array | None:
    """What all weighted gradients together are to come to; None for the sum of all gradients."""
    target = (options.get("class_options") or {}).get("target")
    if target is not None:
        return jnp.asarray(target).sum(axis=0)
    target = options.get("target")
    if target is None or strategy.lifting != "per_class":
        return target
    return len(np.unique(problem.labels_of(problem.train))) * jnp.asarray(target)  # each has it


def _among_all(subset: Subset, drawn: np.ndarray, schedule: Schedule, size: int) -> Subset:
    """A subset of candidates as one of all training examples.

    GRAD-MATCH's and CRAIG's weights say how many examples each stands for: of the candidates, and
    so, scaled, of all, unless the caller's own target says what they add up to.
    """
    options = schedule.strategy.options
    own_target = "target" in options or "target" in (options.get("class_options") or {})
    stands_for = schedule.strategy.name in ("grad_match", "craig") and not own_target
    scale = np.float32(size / len(drawn) if stands_for else 1.0)
    indices = jnp.asarray(drawn[np.asarray(subset.indices)])
    return replace(subset, indices=indices, weights=subset.weights * scale)


def _compute(
    problem: Problem, state: TrainState, schedule: Schedule, hyper: Hyperparameters, key: jax.Array
) -> tuple[Gradients, dict[str, Any]]:
    """The gradients of the training examples, and what the strategy is told beside them."""
    selection, strategy = schedule.selection, schedule.strategy
    smoothing, chunk_size = hyper.label_smoothing, problem.chunk_size

    def gradients_of(indices: np.ndarray) -> tuple[Gradients, Any]:
        """And logits, inputs of the last layer and labels, where it is that layer's."""
        if selection.gradients == "all":
            projected = compute_projected_gradients(
                state,
                problem.examples,
                indices,
                jax.random.fold_in(key, 2**31 - 1),  # one projection for all; `key` selects
                dimension=selection.projection_dimension,
                label_smoothing=smoothing,
                chunk_size=chunk_size,
            )
            return projected, ()
        layer = compute_last_layer(state, problem.examples, indices, chunk_size=chunk_size)
        labels = jnp.asarray(problem.labels_of(indices))
        errors = last_layer_errors(state.loss, layer.logits, labels, smoothing)
        if selection.gradients == "own_class":
            errors = jnp.take_along_axis(errors, labels[:, None], axis=1)
        return FactoredGradients(errors, layer.inputs), (*layer, labels)

    gradients, parts = gradients_of(problem.train)
    if selection.outer == "validation":
        outer, parts = gradients_of(problem.validation)
        if not strategy.needs_objective:
            return gradients, _target(problem, strategy, outer)
    if not strategy.needs_objective:
        return gradients, {}
    # The outer likelihood is that of the training set, as in the paper, unless it is asked for
    # otherwise. η of equation 4 is the learning rate, on the sum of the chosen gradients.
    logits, inputs, labels = parts
    objective = LastLayerObjective(logits, inputs, labels, smoothing, state.loss)
    rate = jnp.asarray(hyper.learning_rate, jnp.float32)
    return gradients, {"objective": objective, "learning_rate": rate}


def _target(problem: Problem, strategy: Strategy, outer: Gradients) -> dict[str, Any]:
    """What GRAD-MATCH matches in place of the training gradient: that of the validation set.

    Scaled up to the number of training examples, in all or in each class, so that weights keep
    their meaning. A class without validation examples has a target of zero: the pursuit ends.
    """
    labels = problem.labels_of(problem.validation)
    if strategy.lifting != "per_class":
        scale = len(problem.train) / len(problem.validation)
        return {"target": outer.weighted_sum(jnp.full(len(labels), scale, jnp.float32))}
    assert problem.num_classes is not None
    ours, theirs = (
        np.bincount(problem.labels_of(indices), minlength=problem.num_classes)
        for indices in (problem.train, problem.validation)
    )
    scales = jnp.asarray(ours / np.maximum(theirs, 1), jnp.float32)
    return {"class_options": {"target": _class_targets(outer, jnp.asarray(labels), scales)}}


@jax.jit  # or else the loop's body, a new function each time, would compile at each selection
def _class_targets(outer: Gradients, labels: jax.Array, scales: jax.Array) -> jax.Array:
    """The scaled sum of each class's gradients, with a leading axis for the class."""

    def of_class(label: jax.Array) -> jax.Array:
        return outer.weighted_sum(jnp.where(labels == label, scales[label], 0.0))

    return jax.lax.map(of_class, jnp.arange(len(scales)))


def describe_selection(
    strategy: str, gradients: Any, subset: Subset, target: jax.Array | None = None
) -> dict[str, Any]:
    """Of a selection, how many places the method itself filled, and the relative residual.

    That is ‖Σ_S w_i g_i - b‖ / ‖b‖ for "grad_match" and "craig", whose weights are made for that
    sum to come close to b: the target, or else the sum of all gradients. None for others.
    """
    residual = None
    if strategy in ("grad_match", "craig"):
        residual = float(_relative_residual(gradients, subset.indices, subset.weights, target))
    return {"selected": int(subset.num_selected), "relative_residual": residual}


@jax.jit
def _relative_residual(
    gradients: Any, indices: jax.Array, weights: jax.Array, target: jax.Array | None
) -> jax.Array:
    if target is None:
        target = gradients.weighted_sum(jnp.ones(gradients.num_examples))
    rest = gradients.take(indices).weighted_sum(weights) - target
    return jnp.linalg.norm(rest) / jnp.maximum(jnp.linalg.norm(target), 1e-30)
