"""Data subset selection in JAX, for hyper-parameter tuning at a fraction of the cost."""

from jdss import data, models
from jdss.data import Dataset, Examples, load_dataset, make_examples, stratified_split
from jdss.gradients import (
    DenseGradients,
    FactoredGradients,
    Gradients,
    SummedGradients,
    last_layer_gradients,
    per_example_gradients,
    sum_consecutive,
)
from jdss.random_projection import projected_gradients
from jdss.reporting.ledger import Ledger
from jdss.selection.craig import craig
from jdss.selection.glister import LastLayerObjective, glister
from jdss.selection.grad_match import grad_match
from jdss.selection.strategies import STRATEGIES
from jdss.selection.uniform import uniform
from jdss.solvers.facility_location import facility_location
from jdss.solvers.matching_pursuit import orthogonal_matching_pursuit
from jdss.subset import Subset, per_batch, per_class
from jdss.training.checkpoint import load_model, save_model
from jdss.training.divergence import TrainingDivergedError
from jdss.training.fit import FitResult, fit
from jdss.training.forward import compute_accuracy, compute_gradients
from jdss.training.hyperparameters import Hyperparameters, hyperparameters
from jdss.training.optimizers import OPTIMIZERS
from jdss.training.state import TrainState, init_state
from jdss.training.train_on_subset import TrainMetrics, train_on_subset
from jdss.tuning.objective import Objective, objective
from jdss.tuning.resuming import DifferentSearchError
from jdss.tuning.space import default_space
from jdss.tuning.tune import Retraining, SearchFailedError, TuneResult, tune

__version__ = "0.1.0.dev0"

__all__ = [
    "OPTIMIZERS",
    "STRATEGIES",
    "Dataset",
    "DenseGradients",
    "DifferentSearchError",
    "Examples",
    "FactoredGradients",
    "FitResult",
    "Gradients",
    "Hyperparameters",
    "LastLayerObjective",
    "Ledger",
    "Objective",
    "Retraining",
    "SearchFailedError",
    "Subset",
    "SummedGradients",
    "TrainMetrics",
    "TrainState",
    "TrainingDivergedError",
    "TuneResult",
    "compute_accuracy",
    "compute_gradients",
    "craig",
    "data",
    "default_space",
    "facility_location",
    "fit",
    "glister",
    "grad_match",
    "hyperparameters",
    "init_state",
    "last_layer_gradients",
    "load_dataset",
    "load_model",
    "make_examples",
    "models",
    "objective",
    "orthogonal_matching_pursuit",
    "per_batch",
    "per_class",
    "per_example_gradients",
    "projected_gradients",
    "save_model",
    "stratified_split",
    "sum_consecutive",
    "train_on_subset",
    "tune",
    "uniform",
]
