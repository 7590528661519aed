"""Which of CORDS's strategies are compared with which of ours, and with which options."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from experiments.trainings import subsets

HYPERPARAMETERS: Mapping[str, Any] = {
    "learning_rate": 0.05,
    "momentum": 0.9,
    "weight_decay": 0.0,
    "optimizer": "sgd",
    "learning_rate_schedule": "cosine",
    "batch_size": 128,
}
_OURS_STOCHASTIC: Mapping[str, Any] = {"lifting": "all", "options": {"greedy": "stochastic"}}
WAYS = {
    way.name: way
    for way in (
        subsets("uniform", "random"),
        subsets("grad_match", "GRAD-MATCH"),
        subsets("grad_match-own", "GRAD-MATCH, own class's gradient", gradients="own_class"),
        subsets("grad_match-batch", "GRAD-MATCH of mini-batches", lifting="per_batch"),
        subsets("craig", "CRAIG"),
        subsets("glister-validation", "GLISTER for the validation set", outer="validation"),
        subsets("glister", "GLISTER"),
        subsets("glister-stochastic", "GLISTER, stochastic greedy", **_OURS_STOCHASTIC),
        subsets(
            "glister-stochastic-validation",
            "GLISTER, stochastic greedy, for the validation set",
            outer="validation",
            **_OURS_STOCHASTIC,
        ),
    )
}


@dataclass(frozen=True)
class Form:
    """One of CORDS's strategies, as it is used.

    Attributes:
      name: what its files are called.
      label: for a reader.
      ours: the name of the way of `WAYS` that it is compared with.
      strategy: its name in `cords_round`; None for random subsets.
      options: of the strategy.
      in_order: whether CRAIG is made to go through each class in order.
      outer: what its second loader reads: "validation" or "training".
    """

    name: str
    label: str
    ours: str
    strategy: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    in_order: bool = False
    outer: str = "validation"


_MATCHING = {"eta": HYPERPARAMETERS["learning_rate"], "linear_layer": True}
# Its configurations' ridge and tolerance, with the solver that it has on a GPU.
_AS_CONFIGURED = {**_MATCHING, "lam": 0.5, "eps": 1e-100, "device": "cpu:0"}
_OWN, _CLASS = {"selection_type": "PerClassPerGradient"}, {"selection_type": "PerClass"}
_BATCH = {"selection_type": "PerBatch", "lam": 0.0}
_CRAIG = {**_CLASS, "linear_layer": False, "if_convex": False}
_GLISTER = {
    "eta": HYPERPARAMETERS["learning_rate"],
    "linear_layer": False,
    "selection_type": "Supervised",
}
_ROUNDS, _STOCHASTIC = {**_GLISTER, "greedy": "RGreedy"}, {**_GLISTER, "greedy": "Stochastic"}
FORMS = {
    form.name: form
    for form in (
        Form("uniform", "random", "uniform"),
        Form(
            "grad_match-own",
            "GRAD-MATCH per class and gradient",
            "grad_match-own",
            "grad_match",
            {**_AS_CONFIGURED, **_OWN},
        ),
        Form(
            "grad_match-own-cpu",
            "the same, CPU solver",
            "grad_match-own",
            "grad_match",
            {**_MATCHING, **_OWN},
        ),
        Form(
            "grad_match",
            "GRAD-MATCH per class",
            "grad_match",
            "grad_match",
            {**_AS_CONFIGURED, **_CLASS},
        ),
        Form(
            "grad_match-cpu",
            "the same, CPU solver",
            "grad_match",
            "grad_match",
            {**_MATCHING, **_CLASS},
        ),
        Form(
            "grad_match-batch",
            "GRAD-MATCH of mini-batches",
            "grad_match-batch",
            "grad_match",
            {**_AS_CONFIGURED, **_BATCH},
        ),
        Form("craig", "CRAIG per class", "craig", "craig", _CRAIG),
        Form("craig-in_order", "the same, in order", "craig", "craig", _CRAIG, in_order=True),
        Form("glister", "GLISTER, r-greedy", "glister-validation", "glister", _ROUNDS),
        Form(
            "glister-stochastic",
            "GLISTER, stochastic greedy",
            "glister-stochastic-validation",
            "glister",
            _STOCHASTIC,
        ),
        Form(
            "glister-training",
            "GLISTER, r-greedy, for the training set",
            "glister",
            "glister",
            _ROUNDS,
            outer="training",
        ),
        Form(
            "glister-stochastic-training",
            "GLISTER, stochastic greedy, for the training set",
            "glister-stochastic",
            "glister",
            _STOCHASTIC,
            outer="training",
        ),
    )
}
