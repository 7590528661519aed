"""Checks of single values, without JAX: naming the argument, what it got and what it takes."""

import numbers
from collections.abc import Callable, Iterable
from typing import Any


def _is(kind: type, value: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def check_kind(name: str, value: Any, holds: bool, wanted: str) -> None:
    if not holds:
        raise TypeError(f"{name} must be {wanted}, got {type(value).__name__}")


def check_choice(name: str, value: Any, known: Iterable[str]) -> None:
    known = sorted(known)
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}; got {value!r}")


def check_positive_int(name: str, value: Any, most: int | None = None) -> int:
    if not _is(numbers.Integral, value):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < 1 or (most is not None and value > most):
        wanted = "at least 1" if most is None else f"in 1..{most}"
        raise ValueError(f"{name} must be {wanted}, got {value}")
    return int(value)


def check_seed(seed: Any) -> int:
    if not _is(numbers.Integral, seed):
        raise TypeError(f"seed must be an int, at least 0, got {seed!r}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be an int in 0..2**63 - 1, got {seed}")
    return int(seed)


def check_number(name: str, value: Any, wanted: str, holds: Callable[[Any], bool]) -> float:
    if not _is(numbers.Real, value):
        raise TypeError(f"{name} must be a number, {wanted}, got {type(value).__name__}")
    if not holds(value):
        raise ValueError(f"{name} must be {wanted}, got {value}")
    return float(value)


def check_fraction(name: str, value: Any) -> float:
    return check_number(name, value, "in (0, 1]", lambda share: 0 < share <= 1)
