"""Similarities as the greedy algorithm reads them: from a matrix, or from gradients on demand."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jdss.gradients import (
    EXACT,
    DenseGradients,
    FactoredGradients,
    Gradients,
    SummedGradients,
    row_shape,
)

METRICS = ("euclidean", "squared_euclidean")

Columns = Callable[[jax.Array], jax.Array]
"""Of candidates int32[b], how similar every example is to each: float32[b, n]."""

_BLOCK = 128  # Candidates whose columns are made together when all n are asked for.
_SLICES = 32  # A column is summed in so many slices at once.


class Similarities(NamedTuple):
    """What the greedy algorithm asks. `best` float32[n] is what every example has already."""

    column: Columns  # of one j int32[]: how similar every example is to it, float32[n]
    gains: Callable[[jax.Array, jax.Array | None], jax.Array]  # (int32[b], best) -> float32[b]
    all_gains: Callable[[jax.Array | None], jax.Array]  # best -> float32[n]


def stored(rows: jax.Array, mask: jax.Array) -> Similarities:
    """Similarities in a matrix whose row j < n is the column of candidate j."""
    own = jnp.diagonal(rows)

    def column(j: jax.Array) -> jax.Array:
        return jax.lax.dynamic_index_in_dim(rows, j, keepdims=False)

    def gains(candidates: jax.Array, best: jax.Array | None) -> jax.Array:
        # On a CPU the sum of a row where it lies beats gathering the rows first.
        if jax.default_backend() == "cpu":
            return jax.lax.map(lambda j: _sum(_improvement(column(j), best, mask, own)), candidates)
        return jnp.sum(_improvement(rows[candidates], best, mask, own), axis=1)

    def all_gains(best: jax.Array | None) -> jax.Array:
        return jnp.sum(_improvement(rows, best, mask, own), axis=1)[: len(mask)]

    return Similarities(column, gains, all_gains)


def on_demand(columns: Columns, mask: jax.Array) -> Similarities:
    """Similarities that are computed whenever they are asked for."""

    def gains(candidates: jax.Array, best: jax.Array | None) -> jax.Array:
        return jnp.sum(_improvement(columns(candidates), best, mask), axis=1)

    def all_gains(best: jax.Array | None) -> jax.Array:
        return in_blocks(lambda block: gains(block, best), len(mask))[: len(mask)]

    return Similarities(lambda j: columns(j[None])[0], gains, all_gains)


def in_blocks(function: Callable[[jax.Array], jax.Array], num_examples: int) -> jax.Array:
    """`function` of all examples, a block at a time, and more: the last example fills the last."""
    block = min(_BLOCK, num_examples)
    examples = jnp.arange(-(-num_examples // block) * block, dtype=jnp.int32)
    values = jax.lax.map(function, jnp.minimum(examples, num_examples - 1).reshape(-1, block))
    return values.reshape(-1, *values.shape[2:])


def _improvement(
    columns: jax.Array, best: jax.Array | None, mask: jax.Array, own: jax.Array | float = 0.0
) -> jax.Array:
    """What candidates of similarities [..., n] add for each example; `best` is ∞ for padding.

    Where there is nothing yet (None), it is how much less similar a candidate is than the example
    itself: the same order, and a large constant in all similarities drowns no difference.
    """
    if best is None:
        # A product: XLA does not vectorise the equivalent `where`.
        return (columns - own) * mask.astype(columns.dtype)
    return jnp.maximum(columns - best, 0.0)


def _sum(values: jax.Array) -> jax.Array:
    """The sum of float32[n], by slices that are added up first: XLA vectorises that on a CPU."""
    width = len(values) // _SLICES
    slices = [values[start : start + width] for start in range(0, _SLICES * width, max(width, 1))]
    partial_sums = sum(slices, start=jnp.zeros(width, values.dtype))
    return jax.lax.optimization_barrier(partial_sums).sum() + values[_SLICES * width :].sum()


# Distances between gradients -----------------------------------------------------------------


def negative_distances(gradients: Gradients, mask: jax.Array, metric: str) -> Columns:
    """`-‖g_j - g_i‖`, or `-‖g_j - g_i‖²`, of candidates j and examples i."""
    squared_distances = _squared_distances(gradients, mask)

    def columns(candidates: jax.Array) -> jax.Array:
        squared = jnp.maximum(squared_distances(candidates), 0.0)
        similarity = -jnp.sqrt(squared) if metric == "euclidean" else -squared
        # An example's distance to itself is zero, whatever the rounding of the others. (Written
        # into the finished block: a comparison of all indices would cost as much as the root,
        # and, fused into the loop around it, the whole would run on one thread.)
        return similarity.at[jnp.arange(len(candidates)), candidates].set(0.0)

    return columns


def _squared_distances(gradients: Gradients, mask: jax.Array) -> Columns:
    """`‖g_j - g_i‖²` of candidates j and examples i.

    `‖a‖² + ‖b‖² - 2 a·b` loses the small distances between large vectors to rounding. Vectors are
    therefore centred first, which changes no distance. Outer products cannot be centred, but
    their factors can: with p = ‖e‖², q = ‖h‖², D = ‖e_i - e_j‖² and D' = ‖h_i - h_j‖²,

        ‖e_i⊗h_i - e_j⊗h_j‖² = ½ [(p_i - p_j)(q_i - q_j) + D (q_i + q_j) + D' (p_i + p_j) - D D'],

    in which every term is small for examples that are close to each other.
    """
    if isinstance(gradients, DenseGradients):
        return _vector_distances(_rescale(gradients.matrix, mask), mask)
    if isinstance(gradients, FactoredGradients):
        errors, inputs = _rescale(gradients.errors, mask), _rescale(gradients.inputs, mask)
        p, q = jnp.sum(errors**2, axis=1), jnp.sum(inputs**2, axis=1)
        between_errors = _vector_distances(errors, mask)
        between_inputs = _vector_distances(inputs, mask)

        def factored(candidates: jax.Array) -> jax.Array:
            d_errors, d_inputs = between_errors(candidates), between_inputs(candidates)
            p_j, q_j = p[candidates, None], q[candidates, None]
            return 0.5 * (
                (p_j - p) * (q_j - q)
                + d_errors * (q_j + q)
                + d_inputs * (p_j + p)
                - d_errors * d_inputs
            )

        return factored
    if isinstance(gradients, SummedGradients):
        in_groups = jnp.repeat(mask, gradients.group_size)
        rows = jax.tree.map(lambda factor: _rescale(factor, in_groups), gradients.rows)
        gradients = SummedGradients(rows, gradients.group_size)
    squared_norms, num_terms = gradients.squared_norms(), math.prod(row_shape(gradients))

    def general(candidates: jax.Array) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            products = gradients.take(candidates).inner_products(gradients)
        return _expand_square(squared_norms[candidates], squared_norms, products, num_terms)

    return general


def _vector_distances(vectors: jax.Array, mask: jax.Array) -> Columns:
    # Around the mean of the shorter half: a few long vectors would draw the mean of all away from
    # the others, whose distances would then be lost to rounding.
    lengths = jnp.where(mask, jnp.sum(vectors**2, axis=1), jnp.inf)
    median = jnp.sort(lengths)[jnp.maximum(mask.sum() - 1, 0) // 2]
    shorter = (lengths <= median)[:, None]
    mean = jnp.sum(vectors, axis=0, where=shorter) / jnp.maximum(shorter.sum(), 1)
    centred = jnp.where(mask[:, None], vectors - mean, 0.0)
    norms = jnp.sum(centred**2, axis=1)

    def squared_distances(candidates: jax.Array) -> jax.Array:
        products = jnp.matmul(centred[candidates], centred.T, precision=EXACT)
        return _expand_square(norms[candidates], norms, products, vectors.shape[1])

    return squared_distances


def _expand_square(
    candidate_norms: jax.Array, norms: jax.Array, products: jax.Array, num_terms: int
) -> jax.Array:
    """`‖a‖² + ‖b‖² - 2 a·b` float32[b, n], and zero where rounding could have made what is left.

    Otherwise duplicates would gain from each other, and be chosen. The error of sums of p products
    was measured to stay below √p ε on CPUs, for p from 5 to 20,000.
    """
    tolerance = (2 + math.sqrt(num_terms)) * float(jnp.finfo(jnp.float32).eps)
    both = candidate_norms[:, None] + norms
    squared = both - 2 * products
    return jnp.where(squared > tolerance * both, squared, 0.0)


def _rescale(vectors: jax.Array, mask: jax.Array) -> jax.Array:
    """Padding to zero, and all divided by a power of two, so that no square under- or overflows."""
    vectors = jnp.where(mask[:, None], vectors, 0.0)
    _, exponent = jnp.frexp(jnp.max(jnp.abs(vectors)))
    return jnp.ldexp(vectors, -exponent)
