"""Labels: class indices, what people have in their place, and numbers."""

from typing import Any

import numpy as np

from jdss import _checks


def encode_labels(
    labels: Any, known: np.ndarray | None = None, name: str = "labels"
) -> tuple[np.ndarray, np.ndarray | None]:
    """Booleans and strings as indices into the classes that they name.

    Returns:
      int32[n] and the classes, sorted (False before True), or `known` if given; any other labels as
      they came, and None.

    Raises:
      ValueError: for a label that is none of the known ones.

    Example:
      >>> encode_labels(["dog", "cat", "dog"])
      (array([1, 0, 1], dtype=int32), array(['cat', 'dog'], dtype='<U3'))
    """
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] == 1 and labels.dtype.kind in "bUSO":
        labels = labels[:, 0]
    if labels.ndim == 1 and labels.dtype.kind in "OU" and len(labels):
        values = labels.tolist()
        if all(isinstance(value, (bool, np.bool_)) for value in values):
            labels = labels.astype(bool)
        elif all(isinstance(value, str) for value in values):
            labels = labels.astype(str)
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
    """Labels as int32[n] where they are class indices, and as float32[n, …] where not.

    Raises:
      ValueError, TypeError: where they are something else.
    """
    labels = np.asarray(labels)
    if classes is None:
        classes = labels.dtype.kind in "iu" and labels.ndim == 1
    if classes:
        if _is_one_hot(labels):
            raise ValueError(
                f"labels must be class indices [{num_examples}], got one-hot {labels.shape}: give "
                "labels.argmax(1)"
            )
        if labels.dtype.kind == "f" and labels.ndim:
            raise TypeError(
                f"labels must be integers (class indices), got dtype {labels.dtype}; numbers are "
                "learned with loss='squared_error' or a jdss.Loss"
            )
        whole = labels.size and labels.dtype.kind in "iu"
        num_classes = max(int(labels.max()), 0) + 1 if whole else 1
        return np.asarray(
            _checks.check_labels(labels, num_examples=num_examples, num_classes=num_classes)
        )
    if labels.dtype.kind not in "fiub":
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


def _is_one_hot(labels: np.ndarray) -> bool:
    """Whether labels [n, c] are a one, and noughts, for each example."""
    return (
        labels.ndim == 2
        and len(labels) > 0
        and labels.shape[1] > 1
        and labels.dtype.kind in "fiub"
        and bool(np.isin(labels, (0, 1)).all() and (labels.sum(1) == 1).all())
    )
