"""Orthogonal matching pursuit, also with non-negative weights, over gradients as operators.

first version
"""

from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from jdss import _checks
from jdss.gradients import Gradients, row_shape
from jdss.subset import Subset, fill_places

_Operator = TypeVar("_Operator", bound=Gradients)

_NOISE = 1e-6
_DEPENDENT = 1e-12
_EXACT = 1e-7


class _Support(NamedTuple):
    indices: jax.Array  # int32[k], the atom in each slot
    weights: jax.Array  # float64[k], zero in empty slots
    inverse: jax.Array  # float64[k, k], of the Gram matrix plus ridge; zero in empty slots
    active: jax.Array  # bool[k], which slots hold an atom


def orthogonal_matching_pursuit(
    gradients, target, budget, *, ridge=0.0, tolerance=0.0, nonnegative=True, mask=None, count=None
):
    n = gradients.num_examples
    budget = _checks.check_budget(budget, n)
    shape = row_shape(gradients)
    target = jnp.asarray(target)
    if target.shape != shape:
        raise ValueError(f"target must have the shape of a gradient, {shape}, got {target.shape}")
    _checks.check_finite("gradients", gradients)
    _checks.check_finite("target", target)
    _checks.check_nonnegative("ridge", ridge)
    _checks.check_nonnegative("tolerance", tolerance)
    if mask is not None:
        mask = jnp.asarray(mask)
        if mask.shape != (n,):
            raise ValueError(f"mask must have shape ({n},), got {mask.shape}")
        mask = mask.astype(bool)
    return _pursue(gradients, target, budget, ridge, tolerance, nonnegative, mask, count)


def _double(tree):
    return jax.tree.map(
        lambda leaf: leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf,
        tree,
    )


@partial(jax.jit, static_argnames=("budget", "nonnegative"))
def _pursue(gradients, target, budget, ridge, tolerance, nonnegative, mask, count):
    n = gradients.num_examples
    mask = jnp.ones(n, bool) if mask is None else mask
    with jax.enable_x64(True):
        support, step = _solve(gradients, target, budget, ridge, tolerance, nonnegative, mask, count)
        order = jnp.argsort(~support.active, stable=True)
        chosen = jnp.where(support.active, support.indices, 0)[order].astype(jnp.int32)
        weights = support.weights[order].astype(jnp.float32)
        num_selected = support.active.sum(dtype=jnp.int32)
    indices = fill_places(chosen, num_selected, n, mask=mask)
    return Subset(indices, weights, num_selected)


def _solve(gradients, target, budget, ridge, tolerance, nonnegative, mask, count):
    n = gradients.num_examples
    count = jnp.int32(budget) if count is None else jnp.asarray(count, jnp.int32)
    target = target.astype(jnp.float64)
    norms2 = jax.lax.map(
        lambda i: _double(gradients.take(i[None])).squared_norms()[0], jnp.arange(n, dtype=jnp.int32), batch_size=256
    )
    lam = jnp.asarray(ridge, jnp.float64) * jnp.where(mask, norms2, 0).sum() / jnp.maximum(mask.sum(), 1)
    norms = jnp.sqrt(norms2).astype(jnp.float32)
    tnorm = jnp.sqrt(jnp.sum(target**2))
    stop_norm = jnp.maximum(jnp.asarray(tolerance, jnp.float64), _EXACT) * tnorm

    def cond(state):
        support, residual, corr, available, step, done = state
        return (
            ~done
            & (support.active.sum() < count)
            & (jnp.sum(residual**2) > stop_norm**2)
            & (step < 8 * budget)
        )

    def body(state):
        support, residual, gradient, available, step, done = state
        rnorm = jnp.sqrt(jnp.sum(residual**2))
        direction = (residual / jnp.maximum(rnorm, 1e-300)).astype(jnp.float32)
        correlation = gradients.correlate(direction)
        score = correlation if nonnegative else jnp.abs(correlation)
        score = jnp.where(available & (score > _NOISE * norms), score, -jnp.inf)
        best = jax.lax.argmax(score, 0, jnp.int32)
        found = score[best] > 0

        # enter
        slot = jax.lax.argmin(support.active, 0, jnp.int32)
        indices = support.indices.at[slot].set(best)
        rows = _double(gradients.take(indices))
        row = _double(gradients.take(best[None]))
        products = rows.inner_products(row)[:, 0]
        diag = products[slot] + lam
        products = jnp.where(support.active, products, 0.0)
        u = support.inverse @ products
        pivot = diag - products @ u
        ok = found & (pivot > _DEPENDENT * diag)
        indices = jnp.where(ok, indices, support.indices)
        u = u.at[slot].set(-1.0)
        inverse = support.inverse + jnp.where(ok, 1 / pivot, 0.0) * u[:, None] * u
        corr_best = row.correlate(residual)[0]
        gradient = jnp.where(support.active, gradient, 0.0).at[slot].set(jnp.where(ok, corr_best, 0.0))
        active = support.active.at[slot].set(ok)
        w = support.weights
        s = jnp.where(active, w + inverse @ gradient, 0.0)
        if nonnegative:
            ok = ok & (s[slot] > 0)
            
            def icond(st):
                sup, s = st
                return jnp.any(sup.active & (s <= 0))

            def ibody(st):
                sup, s = st
                w = sup.weights
                ratio = jnp.where(sup.active & (s <= 0), w / jnp.maximum(w - s, 1e-300), jnp.inf)
                j = jax.lax.argmax(ratio == ratio.min(), 0, jnp.int32)
                w = jnp.where(sup.active, w + ratio[j] * (s - w), 0.0).at[j].set(0.0)
                col = sup.inverse[:, j]
                s = (s - col * (s[j] / col[j])).at[j].set(0.0)
                inv = sup.inverse - col[:, None] * (col / col[j])
                inv = inv.at[j].set(0.0).at[:, j].set(0.0)
                return _Support(sup.indices, w, inv, sup.active.at[j].set(False)), s

            support, s = jax.lax.while_loop(icond, ibody, (_Support(indices, w, inverse, active), s))
            inverse, active = support.inverse, support.active
        support = _Support(indices, s, inverse, active)
        residual = target - rows.weighted_sum(s)
        gradient = rows.correlate(residual) - lam * s
        ok = ok & active[slot]
        available = jnp.where(ok, mask, available)
        available = available.at[best].set(False)
        available = available.at[jnp.where(active, indices, n)].set(False, mode="drop")
        return support, residual, gradient, available, step + 1, ~found 

    start = _Support(
        jnp.full(budget, 0, jnp.int32),
        jnp.zeros(budget, jnp.float64),
        jnp.zeros((budget, budget), jnp.float64),
        jnp.zeros(budget, bool),
    )
    state = (start, target, jnp.zeros(budget, jnp.float64), mask, jnp.int32(0), jnp.bool(False))
    out = jax.lax.while_loop(cond, body, state)
    return out[0], out[4]
