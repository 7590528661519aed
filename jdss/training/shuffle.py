"""Shuffling without sorting: a random permutation evaluated one position at a time.

An epoch visits its examples in a random order. Sorting random keys would cost O(n log n) an epoch
(20 ms for 54,000 examples on a CPU, where an epoch on a 5% subset takes 200 ms), and its shape
would tie the compiled training step to the size of the subset. A Feistel network is a keyed
bijection of the integers below a power of four; applying it again while the result is outside
0..size-1 ("cycle walking") makes it a bijection of exactly 0..size-1, for a traced size.

Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002.
"""

import jax
import jax.numpy as jnp

_ROUNDS = 12  # with 6, orders of fewer than some 16 examples are visibly not uniform


def shuffled(positions: jax.Array, size: jax.Array, key: jax.Array) -> jax.Array:
    """Where each position goes in a random permutation of 0..size-1.

    Args:
      positions: int32[b], each in 0..size-1.
      size: int32[], at least 1, at most 2³⁰; may be traced.
      key: a PRNG key; it alone decides on the permutation.

    Returns:
      int32[b]; over all positions 0..size-1, each of 0..size-1 once.

    Example:
      >>> order = shuffled(jnp.arange(5), jnp.int32(5), jax.random.key(0))
      >>> sorted(order.tolist())
      [0, 1, 2, 3, 4]
    """
    size = jnp.asarray(size, jnp.int32)
    round_keys = jax.random.bits(key, (_ROUNDS,), jnp.uint32)
    # The domain is 4^h, the least power of four that is at least `size`: two halves of h bits.
    bits = 32 - jax.lax.clz(jnp.maximum(size.astype(jnp.uint32), 2) - 1)
    half = (bits + 1) // 2
    low = (jnp.uint32(1) << half) - 1

    def permute(value: jax.Array) -> jax.Array:
        left, right = value >> half, value & low
        for round_key in round_keys:
            left, right = right, left ^ (_mix(right ^ round_key) & low)
        return (left << half) | right

    def walk(value: jax.Array) -> jax.Array:
        return jnp.where(value >= size, permute(value), value)

    inside = jax.lax.while_loop(
        lambda value: jnp.any(value >= size), walk, permute(positions.astype(jnp.uint32))
    )
    return inside.astype(jnp.int32)


def _mix(value: jax.Array) -> jax.Array:
    """A well-mixed function of 32 bits (the finaliser of MurmurHash3)."""
    value = (value ^ (value >> 16)) * jnp.uint32(0x85EBCA6B)
    value = (value ^ (value >> 13)) * jnp.uint32(0xC2B2AE35)
    return value ^ (value >> 16)
