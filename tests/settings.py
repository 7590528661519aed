"""`fit` and `tune` with settings by their names alone, each put into the dataclass it is of."""

from dataclasses import fields
from typing import Any

import jdss


def grouped(**options: Any) -> dict[str, Any]:
    """The arguments of `jdss.fit` and `jdss.tune` that settings given one by one make."""
    if isinstance(options.get("selection"), jdss.Selection):
        return options
    for name, kind in (("selection", jdss.Selection), ("task", jdss.Task), ("search", jdss.Search)):
        known = {field.name for field in fields(kind)} - {"method"}
        given = {key: options.pop(key) for key in list(options) if key in known}
        if kind is jdss.Selection and ("selection" in options or given):
            options[name] = kind(options.get("selection", "grad_match"), **given)
        elif given:
            options[name] = kind(**given)
    return options


def fit(model: Any, data: Any, **options: Any) -> jdss.FitResult:
    """`jdss.fit`."""
    return jdss.fit(model, data, **grouped(**options))


def tune(model: Any, data: Any, **options: Any) -> Any:
    """`jdss.tune`."""
    return jdss.tune(model, data, **grouped(**options))
