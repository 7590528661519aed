"""GRAD-MATCH: a weighted subset whose gradients sum to the gradient of the whole set.

Equation 1 of Visalpara, Killamsetty and Iyer, "A Data Subset Selection Framework for Efficient
Hyper-Parameter Tuning and Automatic Machine Learning" (2021), whose inner minimum over w is
equation 2, with the regulariser of Killamsetty, Sivasubramanian, Ramakrishnan, De and Iyer,
"GRAD-MATCH: Gradient Matching based Data Subset Selection for Efficient Deep Model Training",
ICML 2021:

    min over X, |X| ≤ k, and w ≥ 0 of  ‖Σ_{i ∈ X} w_i g_i - Σ_i g_i‖² + λ ‖w‖²
"""

from typing import Any

import jax
import jax.numpy as jnp

from jdss.gradients import Gradients, check_gradients
from jdss.solvers.matching_pursuit import orthogonal_matching_pursuit
from jdss.subset import Subset, check_places, fill_places


def grad_match(
    gradients: Gradients,
    budget: int,
    *,
    target: Any = None,
    ridge: float | jax.Array = 0.5,
    tolerance: float | jax.Array = 1e-4,
    key: jax.Array | None = None,
    mask: Any = None,
    count: Any = None,
) -> Subset:
    """Selects, by orthogonal matching pursuit, the examples whose gradients match those of all.

    The first `num_selected` places are the pursuit's, in the order in which they entered, with the
    weights of the fit, which are positive. Some are left over where the tolerance is reached, or no
    gradient correlates with the residual any more.

    Args:
      gradients: the n examples' gradients, as an operator.
      budget: k, the static number of places, in 1..n.
      target: float[p] for dense gradients, float[c, d] for factored ones: what is matched, in
        units of a sum over examples. None stands for the sum of all gradients that `mask` allows.
      ridge: λ as a fraction of the mean of `‖g_i‖²`. A larger one spreads the weights more evenly
        over more examples; 0 fits as closely as possible.
      tolerance: the relative residual `‖Σ w_i g_i - target‖ / ‖target‖` at which to stop.
      key: where given, the places left over hold unused examples drawn at random, at weight 1, as
        in the authors' CORDS: no longer the fit that was found, but none of the budget's training
        goes unused where a few examples fit. Without, they hold the lowest indices at weight 0.
      mask: bool[n], False for padding. None allows all.
      count: int32, at most `budget` and possibly traced: the places to fill; those from it on are
        at weight 0. None fills all.

    Raises:
      TypeError, ValueError: as `jdss.orthogonal_matching_pursuit`.

    Example:
      >>> from jdss.gradients import DenseGradients
      >>> gradients = DenseGradients(jnp.array([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0]]))
      >>> subset = grad_match(gradients, 2, ridge=0.0)
      >>> subset.indices, subset.weights.round(4)
      (Array([1, 2], dtype=int32), Array([1.3333, 1.    ], dtype=float32))
    """
    budget, mask, count = check_places(budget, check_gradients(gradients), mask, count)
    if target is None:
        target = gradients.weighted_sum(mask.astype(jnp.float32))
    subset = orthogonal_matching_pursuit(
        gradients, target, budget, ridge=ridge, tolerance=tolerance, mask=mask, count=count
    )
    if key is None:
        return subset
    places, num_selected = jnp.arange(budget), subset.num_selected
    is_left_over = (places >= num_selected) & (places < jnp.minimum(count, mask.sum()))
    return Subset(
        indices=fill_places(subset.indices, num_selected, mask, key),
        weights=jnp.where(is_left_over, jnp.float32(1.0), subset.weights),
        num_selected=num_selected,
    )
