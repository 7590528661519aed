"""The settings of a training and of a search: each stands once, and is checked where it is made.

Nothing of JAX is imported before a setting differs from its default, so that `jdss tune --help`,
which is made from these dataclasses, answers at once.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from jdss._scalars import check_choice, check_fraction, check_kind, check_number, check_positive_int

Named = str | Any
"""A name, or the thing itself; on the command line also `package.module:attribute`."""

_STRATEGIES = ("grad_match", "craig", "glister", "milo", "uniform", "stratified", "full")
_SAMPLERS = ("tpe", "random", "grid", "qmc", "brute_force", "gp", "cmaes", "nsgaii", "nsgaiii")
_PRUNERS = ("none", "asha", "hyperband", "median")


@dataclass(frozen=True)
class Selection:
    """How, from what, and how often subsets are chosen.

    Attributes:
      method: "grad_match", "craig", "glister", "milo", "uniform", "stratified", "full" (everything,
        nothing is selected), or a function of the selection protocol.
      every: R, the epochs between two selections; None means 5, and 1 for "milo", whose subsets
        cost nothing to draw.
      warm_start: κ in [0, 1], the share of the epochs whose budget is spent on all the data first;
        None means a half, and 0 for "milo".
      candidates: the share of the training examples that a selection chooses from, drawn anew each
        time, no less than the fraction; a share c costs c times the forward passes and solving. Not
        in the paper: see docs/results.md. None means half, or twice the fraction where that is
        more; and all for a function of one's own, which may know the examples by their places, and
        for methods that read no gradients, whatever is said.
      lifting: "all", "per_class" or "per_batch" (mini-batches of the training's size); None means
        the method's own.
      outer: "training", as in the paper, or "validation": the examples whose loss GLISTER lowers,
        or whose gradient GRAD-MATCH matches.
      gradients: "last_layer", exact and kept as two factors; "own_class", of these the part of the
        example's own class alone (d numbers in place of c·d, as CORDS does; for selections class by
        class); or "all", of all parameters, projected at random (`jdss.projected_gradients`).
      projection_dimension: the numbers kept of each gradient of all parameters.
      options: what else the method is given, by name: {"ridge": 0.0}, {"greedy": "stochastic"}, …

    Raises:
      ValueError, TypeError: for a bad setting, or one that the method has no use for or refuses.

    Example:
      >>> Selection("craig", every=10).lifting is None
      True
    """

    method: Named = "grad_match"
    _: KW_ONLY
    every: int | None = None
    warm_start: float | None = None
    candidates: float | None = None
    lifting: str | None = None
    outer: str = "training"
    gradients: str = "last_layer"
    projection_dimension: int = 512
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.every is not None:
            check_positive_int("every", self.every)
        if self.warm_start is not None:
            check_number("warm_start", self.warm_start, "in [0, 1]", lambda share: 0 <= share <= 1)
        if self.candidates is not None:
            check_fraction("candidates", self.candidates)
        check_choice("outer", self.outer, ("training", "validation"))
        check_choice("gradients", self.gradients, ("last_layer", "own_class", "all"))
        check_positive_int("projection_dimension", self.projection_dimension)
        if isinstance(self.method, str):
            check_choice("selection", self.method, _STRATEGIES)
        check_kind("options", self.options, isinstance(self.options, Mapping), "a mapping")
        if self.gradients != "all" and self.projection_dimension != 512:
            raise ValueError(
                "projection_dimension must be left out but with gradients='all', the only ones "
                f"that are projected; got {self.projection_dimension}"
            )
        chosen = (self.lifting, self.outer, self.gradients, dict(self.options))
        if not isinstance(self.method, str) or chosen != (None, "training", "last_layer", {}):
            from jdss.selection.strategies import check_strategy

            check_strategy(self.method, *chosen)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained on, and by what a model is scored.

    Attributes:
      loss: "cross_entropy", "squared_error" (½ the squared distance to numbers [n] or
        [n, outputs]), or a `jdss.Loss` of your own.
      metric: what validation measures: "accuracy", "loss" (the mean of what is trained on), "r2",
        "mean_squared_error", or a function of outputs float32[m, c] and labels to a number, or to
        one an example; None means the loss's own.
      direction: "maximize" or "minimize"; None means the metric's own, and "maximize" for a
        function.
      optimizers: the family of optimizers: a mapping from names to functions of
        `jdss.Hyperparameters` to an Optax transformation; None means `jdss.OPTIMIZERS`.
      augmentation: "none" or "crop_flip".

    Raises:
      ValueError, TypeError: for a bad setting, or a metric that does not go with the loss.

    Example:
      >>> Task(loss="squared_error").metric is None
      True
    """

    loss: Named = "cross_entropy"
    metric: Named | None = None
    direction: str | None = None
    optimizers: Mapping[str, Callable[..., Any]] | None = None
    augmentation: str = "none"

    def __post_init__(self) -> None:
        check_choice("augmentation", self.augmentation, ("none", "crop_flip"))
        if (self.loss, self.metric, self.direction) != ("cross_entropy", None, None):
            from jdss.losses import make_loss
            from jdss.training.metrics import make_metric

            make_metric(self.metric, self.direction, make_loss(self.loss))
        if self.optimizers is not None:
            from jdss.training.hyperparameters import check_optimizers

            check_optimizers(self.optimizers)


@dataclass(frozen=True, kw_only=True)
class Search:
    """Where hyper-parameters are looked for, in which order, and which trials are cut short.

    Attributes:
      space: a mapping from names to Optuna distributions, a function of a trial, or the name of a
        space: "default" (`jdss.default_space`) or "published" (the authors'); None means the
        default one, with the task's optimizers.
      sampler: "tpe", "random", "grid", "qmc", "brute_force", "gp" (needs PyTorch), "cmaes" (needs
        cmaes), "nsgaii", "nsgaiii", an Optuna sampler, or a function of a seed to one, which is
        called for every trial with a seed of its own.
      n_startup_trials: trials that "tpe", "gp" and "cmaes" draw at random first; None means two
        fifths of all, at most ten.
      pruner: "none", "asha", "hyperband", "median", or an Optuna pruner; it stops poor trials at
        rungs, the epochs (or steps) r, r·η, r·η², …
      first_rung: r, where trials first report: the score on at most 2,000 validation examples
        there, and on as many times more as a later rung is farther.
      reduction_factor: η, also the share 1/η of trials that "asha" and "hyperband" keep at a rung.
      rung_unit: "epochs", or "steps" where trials have few epochs, with a `first_rung` of your own:
        batches trained on, whatever their size.
      enqueue: hyper-parameters to be tried first, each a mapping; what one leaves open is sampled.
      timeout: seconds after which a call begins no further trial; None means no limit.
      callbacks: called after each trial with the study and the frozen trial, as by Optuna.
      checkpoints: a directory in which trials, and retraining, are saved on their way, so that what
        is cut off goes on from there; None for none.
      checkpoint_every: seconds between two of them.

    Raises:
      ValueError, TypeError: for a bad setting.

    Example:
      >>> Search(pruner="asha").first_rung
      1
    """

    space: Named | None = None
    sampler: Named = "tpe"
    n_startup_trials: int | None = None
    pruner: Named = "none"
    first_rung: int = 1
    reduction_factor: int = 3
    rung_unit: str = "epochs"
    enqueue: Sequence[Mapping[str, Any]] = ()
    timeout: float | None = None
    callbacks: Sequence[Callable[..., Any]] = ()
    checkpoints: str | Path | None = None
    checkpoint_every: float = 60.0

    def __post_init__(self) -> None:
        sampler, pruner, callbacks = self.sampler, self.pruner, self.callbacks
        if isinstance(sampler, str):
            check_choice("sampler", sampler, _SAMPLERS)
        known = callable(sampler) or isinstance(sampler, str) or hasattr(sampler, "sample_relative")
        check_kind("sampler", sampler, known, "a name, an Optuna sampler, or a function of a seed")
        if isinstance(pruner, str):
            check_choice("pruner", pruner, _PRUNERS)
        known = isinstance(pruner, str) or hasattr(pruner, "prune")
        check_kind("pruner", pruner, known, "a name or an Optuna pruner")
        if self.n_startup_trials is not None:
            check_positive_int("n_startup_trials", self.n_startup_trials)
        check_positive_int("first_rung", self.first_rung)
        if check_positive_int("reduction_factor", self.reduction_factor) < 2:
            raise ValueError(f"reduction_factor must be at least 2, got {self.reduction_factor}")
        check_choice("rung_unit", self.rung_unit, ("epochs", "steps"))
        if self.rung_unit == "steps" and self.first_rung == 1:
            raise ValueError("first_rung must be given with rung_unit='steps', such as 100, got 1")
        if self.timeout is not None:
            check_number("timeout", self.timeout, "a positive number of seconds", lambda s: s > 0)
        known = isinstance(callbacks, Sequence) and all(map(callable, callbacks))
        check_kind("callbacks", callbacks, known, "functions of a study and a trial, in a sequence")
        known = isinstance(self.checkpoints, (str, os.PathLike, type(None)))
        check_kind("checkpoints", self.checkpoints, known, "the path of a directory")
        seconds = self.checkpoint_every
        check_number("checkpoint_every", seconds, "at least 0 seconds", lambda s: s >= 0)


@dataclass(frozen=True)
class Workers:
    """Processes that train trials side by side, as Ray actors (`pip install "jdss-jax[ray]"`).

    Attributes:
      number: how many.
      address: of the Ray cluster to join, such as "auto" or "ray://host:10001"; None means what
        RAY_ADDRESS says, or else this machine.
      cpus: cores of each; None means an equal share of this machine's.
      gpus: GPUs of each; None means an equal share of those that there are.

    Raises:
      ValueError, TypeError: for a number below 1, or a negative share.

    Example:
      >>> Workers(4, address="auto").number
      4
    """

    number: int = 1
    _: KW_ONLY
    address: str | None = None
    cpus: float | None = None
    gpus: float | None = None

    def __post_init__(self) -> None:
        check_positive_int("workers", self.number)
        asked = {name: getattr(self, name) for name in ("address", "cpus", "gpus")}
        if self.number == 1 and any(value is not None for value in asked.values()):
            raise ValueError(
                "address, cpus and gpus must be left out with one worker, which is this process; "
                f"got {asked}"
            )
        for name in ("cpus", "gpus"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), "at least 0", lambda share: share >= 0)


def as_selection(selection: Any) -> Selection:
    """A `Selection`, made where a name or a function was given."""
    return selection if isinstance(selection, Selection) else Selection(selection)
