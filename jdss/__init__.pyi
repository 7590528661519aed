from . import data, models
from .compilation import keep_programs
from .config import Search, Selection, Task, Workers
from .data import (
    Dataset,
    Examples,
    keep_on,
    load_dataset,
    make_examples,
    read_sequence,
    stratified_split,
)
from .gradients import (
    DenseGradients,
    FactoredGradients,
    Gradients,
    SummedGradients,
    last_layer_gradients,
    per_example_gradients,
    sum_consecutive,
)
from .ledger import Ledger
from .losses import Loss
from .mini_batches import per_batch
from .random_projection import projected_gradients
from .reports import report
from .selection.craig import craig
from .selection.glister import LastLayerObjective, glister
from .selection.grad_match import grad_match
from .selection.select import select
from .selection.strategies import STRATEGIES
from .selection.uniform import uniform
from .solvers.facility_location import facility_location
from .solvers.matching_pursuit import orthogonal_matching_pursuit
from .subset import Subset, per_class
from .training.checkpoint import TrainedModel, load, load_model, load_normalization, save_model
from .training.divergence import TrainingDivergedError
from .training.fit import fit
from .training.forward import compute_accuracy, compute_gradients
from .training.hyperparameters import Hyperparameters, hyperparameters
from .training.memory import OutOfMemoryError
from .training.optimizers import OPTIMIZERS
from .training.state import TrainState, init_state
from .training.subset_batches import subset_batches, torch_sampler
from .training.train_on_subset import TrainMetrics, train_on_subset
from .training.trial import FitResult
from .tuning.objective import Objective, objective
from .tuning.result import TuneResult
from .tuning.retraining import Retraining
from .tuning.space import default_space, published_space
from .tuning.storage import StorageError, open_storage
from .tuning.study import (
    DifferentSearchError,
    SearchFailedError,
    SearchInterrupted,
    StudyInUseError,
)
from .tuning.tune import tune
from .tuning.workers import WorkerError

__version__: str

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
    "Loss",
    "Objective",
    "OutOfMemoryError",
    "Retraining",
    "Search",
    "SearchFailedError",
    "SearchInterrupted",
    "Selection",
    "StorageError",
    "StudyInUseError",
    "Subset",
    "SummedGradients",
    "Task",
    "TrainMetrics",
    "TrainState",
    "TrainedModel",
    "TrainingDivergedError",
    "TuneResult",
    "WorkerError",
    "Workers",
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
    "keep_on",
    "keep_programs",
    "last_layer_gradients",
    "load",
    "load_dataset",
    "load_model",
    "load_normalization",
    "make_examples",
    "models",
    "objective",
    "open_storage",
    "orthogonal_matching_pursuit",
    "per_batch",
    "per_class",
    "per_example_gradients",
    "projected_gradients",
    "published_space",
    "read_sequence",
    "report",
    "save_model",
    "select",
    "stratified_split",
    "subset_batches",
    "sum_consecutive",
    "torch_sampler",
    "train_on_subset",
    "tune",
    "uniform",
]
