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
from jdss.gradients import Gradients, check_gradients
from jdss.solvers.facility_location import facility_location_of_gradients
from jdss.subset import Subset

GREEDY = ("lazy", "stochastic")


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

    Late in training many gradients are equal or zero, and the distances to the chosen ones may
    all become zero before the budget is spent. The places left then hold the unused examples of
    the lowest index. An example equal to an earlier choice has weight 0: the earlier one
    represents both.

    Args:
      gradients: n rows.
      budget: the number k of places, static, in 1..n.
      metric: "euclidean", as in the paper, or "squared_euclidean".
      greedy: "lazy" is the exact greedy algorithm; "stochastic" takes, at each step, the best of
        `(n / k) log(1 / ε)` random candidates (Mirzasoleiman et al., AAAI 2015), and needs `key`.
      epsilon: the ε of stochastic greedy, in (0, 1). It decides shapes, so it must be concrete.
      matrix: whether to store all n² distances. None does so up to
        `facility_location.MAX_MATRIX_EXAMPLES` examples; above, and with False, distances are
        made from the gradients when they are needed.
      key: a PRNG key for stochastic greedy; the exact algorithm ignores it.
      mask: bool[n], False for padding, which is neither chosen nor counted. None allows all.
      count: int32[] at most k, the places to fill; the others hold weight 0. None fills all.

    Returns:
      A `Subset` in greedy order. Its weights sum to n, or to the number of examples that `mask`
      allows. All places are chosen by the method, unless `mask` or `count` leave fewer than k.

    Raises:
      TypeError: if the budget is not an int, or a key is missing.
      ValueError: for a budget outside 1..n, an unknown metric or greedy algorithm, gradients that
        are not finite, or `epsilon`, `mask` or `count` not as above.

    Example:
      >>> from jdss import DenseGradients
      >>> subset = craig(DenseGradients(jnp.array([[0.0], [0.1], [0.2], [5.0], [5.1]])), 2)
      >>> subset.indices.tolist(), subset.weights.tolist()
      ([2, 3], [3.0, 2.0])
    """
    num_examples = check_gradients(gradients)
    _checks.check_choice("greedy", greedy, GREEDY)
    cover = facility_location_of_gradients(
        gradients,
        budget,
        metric=metric,
        key=key,
        epsilon=epsilon if greedy == "stochastic" else None,
        matrix=matrix,
        mask=mask,
        count=count,
    )
    counted = jnp.ones(num_examples) if mask is None else jnp.asarray(mask, jnp.float32)
    sizes = jnp.zeros(len(cover.indices), jnp.float32).at[cover.nearest].add(counted)
    return Subset(
        indices=cover.indices,
        weights=jnp.where(jnp.arange(len(sizes)) < cover.num_selected, sizes, 0.0),
        num_selected=cover.num_selected,
    )
