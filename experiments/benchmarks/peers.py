"""The other libraries, each called as its documentation says, and references written for this.

A peer that is not installed raises `MissingPeerError`, which says what to install; the rows that
need it are left out. `pip install -e '.[peers]'` installs all but CORDS, which pins old versions
of much that it does not need here: `pip install --no-deps cords==0.0.4` beside the extra.
"""

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PACKAGES = ("apricot-select", "submodlib-py", "scikit-learn", "scipy", "cords", "torch", "numba")


class MissingPeerError(RuntimeError):
    """A library to compare with is not installed."""


def versions() -> dict[str, str | None]:
    """The peers' versions; None for one not installed."""
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def import_peer(module: str, install: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingPeerError(f"`pip install {install}` for {module}: {error}") from error


# Facility location: similarity float32[n, n], symmetric and non-negative -> indices ------------


def submodlib_lazy(similarity: np.ndarray, budget: int) -> Callable[[], list[int]]:
    """Its lazy greedy, in C++; making the function, which copies the matrix, is not counted."""
    module = import_peer("submodlib.functions.facilityLocation", "submodlib-py")
    function = module.FacilityLocationFunction(
        n=len(similarity), mode="dense", separate_rep=False, sijs=similarity
    )

    def run() -> list[int]:
        chosen = function.maximize(
            budget=budget,
            optimizer="LazyGreedy",
            stopIfZeroGain=False,
            stopIfNegativeGain=False,
            show_progress=False,
        )
        return [j for j, _ in chosen]

    return run


def apricot_lazy(similarity: np.ndarray, budget: int) -> Callable[[], np.ndarray]:
    """Its lazy greedy, compiled by Numba."""
    module = import_peer("apricot", "apricot-select")

    def run() -> np.ndarray:
        selection = module.FacilityLocationSelection(budget, metric="precomputed", optimizer="lazy")
        return selection.fit(similarity).ranking

    return run


def plain_greedy(similarity: jax.Array, budget: int) -> Callable[[], jax.Array]:
    """Every gain of every step, jitted: what one would write first."""

    @jax.jit
    def run(similarity: jax.Array) -> jax.Array:
        def choose(place: int, state: tuple) -> tuple:
            best, taken, indices = state
            gains = jnp.maximum(similarity - best, 0).sum(axis=1)
            winner = jnp.argmax(jnp.where(taken, -1.0, gains)).astype(jnp.int32)
            best = jnp.maximum(best, similarity[winner])
            return best, taken.at[winner].set(True), indices.at[place].set(winner)

        n = len(similarity)
        start = jnp.zeros(n), jnp.zeros(n, bool), jnp.zeros(budget, jnp.int32)
        return jax.lax.fori_loop(0, budget, choose, start)[2]

    return lambda: run(similarity)


def exact_greedy(similarity: np.ndarray, budget: int) -> list[int]:
    """Lazy greedy with a queue, every gain in float64: the oracle of the objective."""
    import heapq

    best = np.zeros(len(similarity))
    queue = [(-float(row.sum(dtype=np.float64)), j, 0) for j, row in enumerate(similarity)]
    heapq.heapify(queue)
    chosen: list[int] = []
    while len(chosen) < budget:
        gain, j, age = heapq.heappop(queue)
        if age == len(chosen):
            chosen.append(j)
            best = np.maximum(best, similarity[j])
        else:
            gain = float(np.maximum(similarity[j] - best, 0).sum())
            heapq.heappush(queue, (-gain, j, len(chosen)))
    return chosen


# Pursuit: rows float[n, p], target float[p] -> weights float[n] ---------------------------------


def nnls_pursuit(rows: np.ndarray, target: np.ndarray, budget: int) -> Callable[[], np.ndarray]:
    """Non-negative matching pursuit whose every refit is SciPy's exact NNLS, in float64.

    The refit is over the support and the new row; rows of weight zero leave, and may return.
    """
    nnls = import_peer("scipy.optimize", "scipy").nnls

    def run() -> np.ndarray:
        support: list[int] = []
        residual, weights = target, np.zeros(0)
        # Rows leave, so there are more steps than places.
        for _ in range(8 * budget):
            correlations = rows @ residual
            correlations[support] = -np.inf
            best = int(np.argmax(correlations))
            if len(support) == budget or correlations[best] <= 0:
                break
            tried = np.array([*support, best])
            refitted, _ = nnls(rows[tried].T, target, maxiter=50 * budget)
            support, weights = tried[refitted > 0].tolist(), refitted[refitted > 0]
            residual = target - weights @ rows[support]
            if best not in support:  # No progress: it would be chosen again.
                break
        result = np.zeros(len(rows))
        result[support] = weights
        return result

    return run


def sklearn_omp(rows: np.ndarray, target: np.ndarray, budget: int) -> Callable[[], np.ndarray]:
    """Signed orthogonal matching pursuit, on atoms that it normalises."""
    module = import_peer("sklearn.linear_model", "scikit-learn")
    return lambda: module.orthogonal_mp(rows.T, target, n_nonzero_coefs=budget)


def cords_omp(
    rows: np.ndarray, target: np.ndarray, budget: int, *, solver: str
) -> Callable[[], np.ndarray]:
    """One of CORDS's solvers, as its strategies call them: non-negative, without a ridge."""
    function = getattr(cords_module("helpers.omp_solvers"), solver)
    if "Parallel" not in solver:
        return lambda: function(rows.T, target, nnz=budget, positive=True, lam=0)
    torch = import_peer("torch", "torch")
    atoms, goal = torch.from_numpy(rows.T.copy()), torch.from_numpy(target.copy())
    return lambda: function(atoms, goal, nnz=budget, positive=True, lam=0).numpy()


CORDS_SOLVERS = {
    "OrthogonalMP_REG": "cords OrthogonalMP_REG (its CPU solver)",
    "OrthogonalMP_REG_Parallel": "cords OrthogonalMP_REG_Parallel",
    "OrthogonalMP_REG_Parallel_V1": "cords OrthogonalMP_REG_Parallel_V1",
    "OrthogonalMP_REG_NNLS": "cords OrthogonalMP_REG_NNLS",
}


def cords_module(name: str) -> Any:
    """A module of `cords.selectionstrategies`, without what its package imports beside it.

    The package of its strategies imports one that needs torchvision, and its solvers make NumPy
    raise on underflow, in the whole process: neither is wanted here.
    """
    install = "--no-deps cords==0.0.4"
    import_peer("torch", "torch")
    spec = importlib.util.find_spec("cords")
    if spec is None or not spec.submodule_search_locations:
        raise MissingPeerError(f"`pip install {install}`: No module named 'cords'")
    package = "cords.selectionstrategies.SL"
    if package not in sys.modules:
        bare = types.ModuleType(package)
        bare.__path__ = [f"{spec.submodule_search_locations[0]}/selectionstrategies/SL"]
        sys.modules[package] = bare
    handling = np.geterr()
    try:
        return import_peer(f"cords.selectionstrategies.{name}", install)
    finally:
        np.seterr(**handling)
