"""CRAIG: the medoids of the per-example gradients, weighted by the sizes of their clusters.

Mirzasoleiman, Bilmes, Leskovec, "Coresets for Data-efficient Training of Machine Learning Models",
ICML 2020. If example i is represented by the chosen example j(i) of the nearest gradient, then the
error of the weighted subset's gradient is bounded by the sum of the distances (their equation 6):

    ‖Σ_i g_i - Σ_{j ∈ S} w_j g_j‖ ≤ Σ_i min_{j ∈ S} ‖g_i - g_j‖,    w_j = #{i : j(i) = j}.

Minimising the right side over k examples is facility location with similarities `-‖g_i - g_j‖`,
which the greedy algorithm solves up to its guarantee (their algorithm 1).
"""

from typing import Any

import jax
import jax.numpy as jnp

from jdss import _checks
from jdss.gradients import Gradients, cast, check_gradients
from jdss.solvers._similarities import METRICS
from jdss.solvers.facility_location import check_greedy, cover_gradients
from jdss.subset import Subset

MAX_MATRIX_EXAMPLES = 16_384
"""Up to this n a problem's n × n similarities are stored: at most 1 GiB, and much faster."""


def craig(
    gradients: Gradients,
    budget: int,
    *,
    metric: str = "euclidean",
    greedy: str = "lazy",
    epsilon: float = 0.01,
    matrix: bool | None = None,
    key: jax.Array | None = None,
    mask: Any = None,
    count: Any = None,
) -> Subset:
    """The k gradients that all others are nearest to, weighted by how many those are.

    In greedy order, of weights that sum to n, or to the number that `mask` allows. Of equal
    gradients the first that is chosen represents all, and the others have weight 0. Once all
    distances to chosen ones are zero, the unused examples of the lowest index follow.

    Args:
      gradients: n rows, as an operator.
      budget: the number k of places, static, in 1..n.
      metric: "euclidean", as in the paper, or "squared_euclidean".
      greedy: "lazy" is the exact greedy algorithm; "stochastic" takes, at each step, the best of
        `(n / k) log(1 / ε)` random candidates (Mirzasoleiman et al., AAAI 2015), and needs `key`.
      epsilon: the ε of stochastic greedy, in (0, 1). It decides shapes, so it must be concrete.
      matrix: whether to store all n² distances, or to make a few hundred columns at a time when
        they are needed. None stores them up to n = 16,384.
      key: a PRNG key for stochastic greedy.
      mask: bool[n], False for padding, which is neither chosen nor counted. None allows all.
      count: int32[] at most k, the places to fill; the others hold weight 0. None fills all.

    Raises:
      TypeError, ValueError: for arguments not as above, or gradients that are not finite.

    Example:
      >>> from jdss import DenseGradients
      >>> subset = craig(DenseGradients(jnp.array([[0.0], [0.1], [0.2], [5.0], [5.1]])), 2)
      >>> subset.indices.tolist(), subset.weights.tolist()
      ([2, 3], [3.0, 2.0])
    """
    num_examples = check_gradients(gradients)
    _checks.check_choice("metric", metric, METRICS)
    _checks.check_choice("greedy", greedy, ("lazy", "stochastic"))
    sampling = epsilon if greedy == "stochastic" else None
    how = check_greedy(num_examples, budget, mask, count, key, sampling)
    stored = num_examples <= MAX_MATRIX_EXAMPLES if matrix is None else bool(matrix)
    rows = cast(gradients, jnp.float32)
    indices, nearest, num_selected = cover_gradients(rows, how, metric, stored)
    sizes = jnp.zeros(how.budget, jnp.float32).at[nearest].add(how.mask.astype(jnp.float32))
    weights = jnp.where(jnp.arange(how.budget) < num_selected, sizes, 0.0)
    return Subset(indices, weights, num_selected)
