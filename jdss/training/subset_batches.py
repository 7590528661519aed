"""Batches of a weighted subset, for a training loop of one's own."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jdss import _checks
from jdss.subset import Subset
from jdss.training.train_on_subset import steps_per_epoch


def subset_batches(
    subset: Subset, batch_size: int, key: jax.Array, *, pad: bool = True
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """One epoch over a subset, in the random order of a key.

    Every place of positive weight is visited once, in ceil(size / b) batches whose sizes differ by
    at most one. The loss of a batch B that the weights ask for is `Σ w_i ℓ_i / (|B| w̄)`, with w̄ the
    mean of the subset's positive weights, as in `train_on_subset`.

    Args:
      subset: indices int32[k] and weights float32[k].
      batch_size: b, the most examples in a batch.
      key: a PRNG key; it alone decides on the order. Give each epoch its own.
      pad: whether batches are filled up to b, at weight 0, so that all have one shape and what is
        done with them compiles once.

    Returns:
      An iterator of (indices int32[b], weights float32[b]), NumPy's arrays; without `pad`, of
      |B| each.

    Raises:
      TypeError, ValueError: for a batch size that is no positive int, or a subset whose indices and
        weights disagree in shape, whose weights are negative or not finite, or none is positive.

    Example:
      >>> import jdss, jax.numpy as jnp
      >>> subset = jdss.Subset(jnp.array([7, 3, 5]), jnp.array([1.0, 2.0, 0.5]), jnp.int32(3))
      >>> batches = list(jdss.subset_batches(subset, 2, jax.random.key(0)))
      >>> [indices.shape for indices, _ in batches]
      [(2,), (2,)]
      >>> sum(float(weights.sum()) for _, weights in batches)
      3.5
    """
    size = _checks.check_positive_int("batch_size", batch_size)
    indices, weights = np.asarray(subset.indices), np.asarray(subset.weights)
    if indices.ndim != 1 or indices.shape != weights.shape:
        raise ValueError(
            "subset must have indices and weights of one shape (k,), got "
            f"{indices.shape} and {weights.shape}"
        )
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError("subset.weights must be finite and non-negative")
    if not (weights > 0).any():
        raise ValueError("subset.weights must have a positive weight: there is nothing to visit")
    generator = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    order = generator.permutation(np.flatnonzero(weights > 0))

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        end = 0
        for places in np.array_split(order, steps_per_epoch(len(order), size)):
            end += len(places)
            missing = size - len(places) if pad else 0
            filled = np.resize(np.roll(order, -end), missing)  # the examples that come next
            yield (
                np.concatenate([indices[places], indices[filled]]).astype(np.int32),
                np.pad(weights[places], (0, missing)).astype(np.float32),
            )

    return batches()


def torch_sampler(subset: Subset, *, seed: int = 0) -> Any:
    """A PyTorch sampler over a subset, for a `DataLoader` on the whole data set.

    Where all weights are equal, an epoch visits every example once, in a new order. Otherwise it
    draws as many, with replacement, in proportion to the weights: the plain mean of their losses
    then is, in expectation, that of the weighted subset.

    Args:
      subset: indices into the data set that the loader is given.
      seed: decides on the order.

    Raises:
      ModuleNotFoundError: where PyTorch is not installed.

    Example:
      ```python
      loader = torch.utils.data.DataLoader(dataset, 128, sampler=jdss.torch_sampler(subset))
      ```
    """
    import torch

    chosen = subset.tolist()
    weights = np.asarray(subset.weights, np.float64)
    weights = weights[weights > 0]
    generator = torch.Generator().manual_seed(_checks.check_seed(seed))
    if not len(chosen):
        raise ValueError("subset.weights must have a positive weight: there is nothing to visit")
    if np.allclose(weights, weights[0]):
        return torch.utils.data.SubsetRandomSampler(chosen, generator)

    class Weighted(torch.utils.data.Sampler):
        def __iter__(self) -> Iterator[int]:
            drawn = torch.multinomial(
                torch.as_tensor(weights), len(chosen), replacement=True, generator=generator
            )
            return iter([chosen[place] for place in drawn.tolist()])

        def __len__(self) -> int:
            return len(chosen)

    return Weighted()
