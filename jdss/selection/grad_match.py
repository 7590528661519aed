"""GRAD-MATCH (first version)."""
import jax.numpy as jnp
import jax
from jdss.solvers.matching_pursuit import orthogonal_matching_pursuit
from jdss.subset import Subset, fill_places


def grad_match(gradients, budget, *, target=None, ridge=0.5, tolerance=1e-4, key=None, mask=None, count=None):
    if target is None:
        ones = jnp.ones(gradients.num_examples, jnp.float32)
        target = gradients.weighted_sum(ones if mask is None else mask.astype(jnp.float32))
    subset = orthogonal_matching_pursuit(
        gradients, target, budget, ridge=ridge, tolerance=tolerance, mask=mask, count=count
    )
    if key is None:
        return subset
    indices = fill_places(subset.indices, subset.num_selected, gradients.num_examples, mask=mask, key=key)
    places = jnp.arange(budget)
    limit = budget if count is None else count
    weights = jnp.where((places >= subset.num_selected) & (places < limit), 1.0, subset.weights)
    return Subset(indices, weights, subset.num_selected)
