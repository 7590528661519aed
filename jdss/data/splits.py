"""Splits: stratified by class, and at random where there are no classes."""

from typing import Any

import numpy as np

from jdss import _checks


def stratified_split(
    labels: Any, fraction: float = 0.1, *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Splits examples in two, with every class in proportion in both.

    Shares go by the largest remainder. The first part keeps an example of every class where there
    is room, so that no class is scored that was never learned.

    Args:
      labels: int[n], class indices.
      fraction: the share of the second part, in (0, 1): round(fraction · n) examples, at least 1.
      seed: the same seed gives the same split.

    Returns:
      The sorted indices int32 of the first part (the larger one by default) and of the second.

    Raises:
      TypeError, ValueError: for labels that are not integers, or fewer than two; a fraction
        outside (0, 1).

    Example:
      >>> train, validation = stratified_split([0, 0, 0, 0, 1, 1, 1, 1], 0.25)
      >>> len(train), len(validation)
      (6, 2)
    """
    labels = np.asarray(labels)
    _check_fraction(fraction)
    if labels.ndim != 1 or len(labels) < 2:
        raise ValueError(
            f"labels must have shape (n,) with at least two examples to split, got {labels.shape}"
        )
    num_classes = max(int(labels.max()), 0) + 1 if labels.dtype.kind in "iu" else 1
    _checks.check_labels(labels, num_examples=len(labels), num_classes=num_classes)
    return _split(labels, fraction, seed)


def random_split(
    num_examples: int, fraction: float = 0.1, *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """`stratified_split` of so many examples as one class, for labels that are no classes."""
    _check_fraction(fraction)
    if num_examples < 2:
        raise ValueError(f"there must be at least two examples to split, got {num_examples}")
    return _split(np.zeros(num_examples, np.int32), fraction, seed)


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be in (0, 1), got {fraction}")


def _split(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    size = min(max(round(fraction * len(labels)), 1), len(labels) - 1)
    generator = np.random.default_rng(seed)
    second = np.concatenate(
        [
            generator.permutation(np.flatnonzero(labels == label))[:share]
            for label, share in enumerate(_shares(np.bincount(labels), size))
        ]
    )
    first = np.setdiff1d(np.arange(len(labels)), second)
    return first.astype(np.int32), np.sort(second).astype(np.int32)


def _shares(class_sizes: np.ndarray, size: int) -> np.ndarray:
    """How many of each class go to the second part, `size` in all."""
    kept = 1 if size <= np.maximum(class_sizes - 1, 0).sum() else 0
    room = np.maximum(class_sizes - kept, 0)
    quotas, total = size * class_sizes, class_sizes.sum()
    shares = np.minimum(quotas // total, room)
    while shares.sum() < size:
        remainders = np.where(shares < room, quotas - shares * total, np.iinfo(np.int64).min)
        shares[np.argmax(remainders)] += 1
    return shares
