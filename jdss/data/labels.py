"""Labels: class indices, what people have in their place, and numbers; and splits by them."""

from typing import Any

import numpy as np

from jdss import _checks


def encode_labels(
    labels: Any, known: np.ndarray | None = None, name: str = "labels"
) -> tuple[np.ndarray, np.ndarray | None]:
    """Booleans and strings as indices int32[n] into the classes that they name, and these.

    They are sorted (False before True), or the `known` ones, beside which no other may be. Labels
    of another kind are returned as they came, and None.
    """
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] == 1 and labels.dtype.kind in "bUSO":
        labels = labels[:, 0]
    if labels.ndim == 1 and labels.dtype.kind == "O" and len(labels):
        kinds = {type(value) for value in labels.tolist()}
        if kinds <= {bool, np.bool_} or kinds <= {str, np.str_}:
            labels = labels.astype(bool if bool in kinds or np.bool_ in kinds else str)
    if labels.ndim != 1 or labels.dtype.kind not in "bUS":
        return labels, None
    classes = np.array([False, True]) if labels.dtype.kind == "b" else np.unique(labels)
    if known is not None:
        odd = np.setdiff1d(classes, known)
        if len(odd):
            raise ValueError(
                f"{name} must be among the classes of data, {', '.join(map(repr, known.tolist()))};"
                f" got {odd.tolist()[0]!r}"
            )
        classes = known
    return np.searchsorted(classes, labels).astype(np.int32), classes


def check_targets(labels: Any, num_examples: int, classes: bool | None) -> np.ndarray:
    """Labels as int32[n] where they are class indices, and as float32[n, …] where not."""
    labels = np.asarray(labels)
    kind = labels.dtype.kind
    if classes is None:
        classes = kind in "iu" and labels.ndim == 1
    if classes:
        has_columns = labels.ndim == 2 and labels.shape[1] > 1 and kind in "fiub" and labels.size
        if has_columns and np.isin(labels, (0, 1)).all() and (labels.sum(1) == 1).all():
            raise ValueError(
                f"labels must be class indices [{num_examples}], got one-hot {labels.shape}: give "
                "labels.argmax(1)"
            )
        if kind == "f" and labels.ndim:
            raise TypeError(
                f"labels must be integers (class indices), got dtype {labels.dtype}; numbers are "
                "learned with loss='squared_error' or a jdss.Loss"
            )
        return np.asarray(_checks.check_labels(labels, num_examples=num_examples))
    if kind not in "fiub":
        raise TypeError(f"labels must be numbers, got dtype {labels.dtype}")
    if labels.ndim < 1 or len(labels) != num_examples:
        raise ValueError(
            f"labels must have shape [{num_examples}, …], one for each example, got {labels.shape}"
        )
    with np.errstate(over="ignore"):
        labels = labels.astype(np.float32)
    if not np.isfinite(labels).all():
        raise ValueError("labels must be finite in float32, but some are NaN or infinite")
    return labels


def stratified_split(
    labels: Any, fraction: float = 0.1, *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Splits examples in two, with every class in proportion in both.

    Shares go by the largest remainder. The first part keeps an example of every class where there
    is room, so that no class is scored that was never learned.

    Args:
      labels: int[n], class indices, at least two.
      fraction: the share of the second part, in (0, 1): round(fraction · n) examples, at least 1.
      seed: the same seed gives the same split.

    Returns:
      The sorted indices int32 of the first part (the larger one by default) and of the second.

    Raises:
      TypeError, ValueError: for arguments not as above.

    Example:
      >>> train, validation = stratified_split([0, 0, 0, 0, 1, 1, 1, 1], 0.25)
      >>> len(train), len(validation)
      (6, 2)
    """
    labels = np.asarray(labels)
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be in (0, 1), got {fraction}")
    if labels.ndim != 1 or len(labels) < 2:
        raise ValueError(
            f"labels must have shape (n,) with at least two examples to split, got {labels.shape}"
        )
    _checks.check_labels(labels, num_examples=len(labels))
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
