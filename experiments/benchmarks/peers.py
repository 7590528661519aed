"""The other libraries, each called as its documentation says, and references written for this.

The rows of a peer that cannot be imported are left out. `pip install -e '.[peers]'` installs all
but CORDS, which pins old versions of much that it does not need here: `pip install --no-deps
cords==0.0.4` beside the extra.
"""

import importlib
import importlib.util
import logging
import sys
import types
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from scipy.optimize import nnls

import jdss
from experiments.results import installed_version
from jdss.training.forward import compute_last_layer
from jdss.training.problem import Problem

PACKAGES = ("apricot-select", "submodlib-py", "scikit-learn", "scipy", "cords", "torch", "numba")


def versions() -> dict[str, str | None]:
    """The peers' versions; None for one not installed."""
    return {package: installed_version(package) for package in PACKAGES}


def cords_module(name: str) -> Any:
    """A module of `cords.selectionstrategies`, without what its package imports beside it.

    That needs torchvision, and its solvers make NumPy raise on underflow, in the whole process.
    """
    spec = importlib.util.find_spec("cords")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'cords'")
    package = "cords.selectionstrategies.SL"
    bare = types.ModuleType(package)
    bare.__path__ = [f"{spec.submodule_search_locations[0]}/selectionstrategies/SL"]
    sys.modules.setdefault(package, bare)
    handling = np.geterr()
    try:
        return importlib.import_module(f"cords.selectionstrategies.{name}")
    finally:
        np.seterr(**handling)


# Facility location: similarity float32[n, n], symmetric and non-negative -> indices ------------


def submodlib_lazy(similarity: np.ndarray, budget: int) -> Callable[[], list[int]]:
    """Its lazy greedy, in C++; making the function, which copies the matrix, is not counted."""
    from submodlib.functions.facilityLocation import FacilityLocationFunction

    function = FacilityLocationFunction(
        n=len(similarity), mode="dense", separate_rep=False, sijs=similarity
    )
    never = {"stopIfZeroGain": False, "stopIfNegativeGain": False, "show_progress": False}
    return lambda: [j for j, _ in function.maximize(budget=budget, optimizer="LazyGreedy", **never)]


def apricot_lazy(similarity: np.ndarray, budget: int) -> Callable[[], np.ndarray]:
    """Its lazy greedy, compiled by Numba."""
    from apricot import FacilityLocationSelection

    make = partial(FacilityLocationSelection, budget, metric="precomputed", optimizer="lazy")
    return lambda: make().fit(similarity).ranking


def exact_greedy(similarity: np.ndarray, budget: int) -> list[int]:
    """Every gain of every step in float64: the oracle of the objective."""
    best, chosen = np.zeros(len(similarity)), list[int]()
    for _ in range(budget):
        gains = np.maximum(similarity - best, 0).sum(axis=1)
        chosen.append(int(gains.argmax()))
        best = np.maximum(best, similarity[chosen[-1]])
    return chosen


# Pursuit: rows float[n, p], target float[p] -> weights float[n] ---------------------------------


def nnls_pursuit(rows: np.ndarray, target: np.ndarray, budget: int) -> np.ndarray:
    """Non-negative matching pursuit whose every refit is SciPy's exact NNLS, in float64.

    The refit is over the support and the new row; rows of weight zero leave, and may return.
    """
    weights = np.zeros(len(rows))
    # Rows leave, so there are more steps than places.
    for _ in range(8 * budget):
        support = np.flatnonzero(weights)
        correlations = rows @ (target - weights[support] @ rows[support])
        correlations[support] = -np.inf
        best = int(np.argmax(correlations))
        if len(support) == budget or correlations[best] <= 0:
            break
        tried = np.append(support, best)
        weights = np.zeros(len(rows))
        weights[tried], _ = nnls(rows[tried].T, target, maxiter=50 * budget)
        if weights[best] == 0:  # no progress: it would be chosen again
            break
    return weights


def sklearn_omp(rows: np.ndarray, target: np.ndarray, budget: int) -> Callable[[], np.ndarray]:
    """Signed orthogonal matching pursuit, on atoms that it normalises."""
    from sklearn.linear_model import orthogonal_mp

    return partial(orthogonal_mp, rows.T, target, n_nonzero_coefs=budget)


# CORDS's own strategies, on a twin of the network in PyTorch ------------------------------------


def torch_lenet(classes: int = 10) -> Any:
    """LeNet as a `torch.nn.Module` of CORDS's protocol."""
    import torch
    from torch import nn

    class LeNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(
                *(nn.Conv2d(1, 6, 5, padding=2), nn.MaxPool2d(2), nn.ReLU()),
                *(nn.Conv2d(6, 16, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten()),
                *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU()),
            )
            self.last = nn.Linear(84, classes)

        def forward(self, images: Any, last: bool = False, freeze: bool = False) -> Any:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not freeze):
                hidden = self.features(images)
            return (self.last(hidden), hidden) if last else self.last(hidden)

        def get_embedding_dim(self) -> int:
            return 84

    return LeNet()


def twin(problem: Problem, state: jdss.TrainState) -> Any:
    """LeNet in PyTorch with the weights of one in Flax, checked to have the same logits."""
    import torch

    model = torch_lenet(problem.num_classes or 10)
    layers = [layer for layer in (*model.features, model.last) if hasattr(layer, "weight")]
    for name, layer in zip(sorted(state.params), layers, strict=True):  # Conv_0, …, Dense_2
        kernel, bias = (np.array(state.params[name][part]) for part in ("kernel", "bias"))
        if name == "Dense_0":  # it reads channels last in Flax, and first here
            kernel = kernel.reshape(5, 5, 16, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
        axes = (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)
        layer.weight.data = torch.tensor(kernel.transpose(axes).copy())
        layer.bias.data = torch.tensor(bias)
    some = problem.validation[:64]
    with torch.no_grad():
        logits = model(tensors(problem.examples, some)[0]).numpy()
    ours = compute_last_layer(state, problem.examples, some).logits
    np.testing.assert_allclose(logits, ours, rtol=1e-3, atol=1e-3)
    return model


def tensors(examples: Any, indices: np.ndarray) -> tuple[Any, Any]:
    """Some examples as PyTorch has them: images normalised, channels first, and labels."""
    import torch

    images = np.asarray(examples.normalization(examples.inputs[indices]))
    labels = np.asarray(examples.labels[indices], np.int64)
    return torch.tensor(images.transpose(0, 3, 1, 2).copy()), torch.tensor(labels)


def cords_strategy(
    name: str,
    problem: Problem,
    state: jdss.TrainState,
    *,
    outer: str = "validation",
    label: int | None = None,
    device: str = "cpu",
    **options: Any,
) -> Any:
    """One of CORDS's strategies over the twin of a network; `options` are its own.

    Its second loader reads the `outer` examples. With a `label` it chooses from one class. On the
    device "cpu" its GRAD-MATCH has a solver of its own; on any other name, such as "cpu:0" for the
    same device, it has that of a GPU.
    """
    import torch

    file = name.replace("_", "")
    module = cords_module(f"SL.{file}strategy")
    make = getattr(module, {"grad_match": "GradMatch"}.get(name, name.upper()) + "Strategy")

    def loader(indices: np.ndarray) -> Any:  # in batches as in training
        data = torch.utils.data.TensorDataset(*tensors(problem.examples, indices))
        return torch.utils.data.DataLoader(data, batch_size=128, shuffle=False)

    train = problem.train
    if label is not None:
        train = train[problem.labels_of(train) == label]
    # It asks for pinned memory, which only matters with a GPU.
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    logger = logging.getLogger("cords")
    logger.setLevel(logging.ERROR)
    return make(
        loader(train),
        loader(problem.train if outer == "training" else problem.validation),
        twin(problem, state),
        torch.nn.CrossEntropyLoss(reduction="none"),
        device=device,
        num_classes=problem.num_classes,
        logger=logger,
        **options,
    )
