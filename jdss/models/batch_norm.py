"""BatchNorm over a batch that is split over devices.

`BatchNorm(axis_name=…)` averages the devices' own means, which is wrong where the devices hold
different numbers of examples, and the axis has to be written into the model. Here every BatchNorm
of any module, unchanged, takes its statistics over all examples of all devices, so that the number
of devices changes no result.
"""

import math
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx


@contextmanager
def whole_batch_statistics(axis_name: str, counts: jax.Array) -> Iterator[None]:
    """Inside, every BatchNorm in training takes its statistics over a `pmap`ped axis.

    A layer that has an `axis_name` of its own is left to itself.

    Args:
        axis_name: Of the devices.
        counts: bool ``[b]``, which examples of this device belong to the batch; the others are
            normalised, but count for nothing.

    Example:
        >>> def normalised(x, counts):
        ...     layer = nn.BatchNorm(use_running_average=False)
        ...     variables = layer.init(jax.random.key(0), x)
        ...     with whole_batch_statistics("devices", counts):
        ...         return layer.apply(variables, x, mutable=["batch_stats"])[0]
        >>> x = jnp.array([[[1.0], [3.0]]])  # one device, two examples, one feature
        >>> jax.pmap(normalised, axis_name="devices")(x, jnp.ones((1, 2), bool)).ravel().round(3)
        Array([-1.,  1.], dtype=float32)
    """

    def normalise(
        call: Any, arguments: Any, keywords: Any, context: nn.module.InterceptorContext
    ) -> Any:
        layer = context.module
        if context.method_name == "__call__" and getattr(layer, "holds_nnx", False):
            return call(*arguments, **keywords, batch=(axis_name, counts))
        if not isinstance(layer, nn.BatchNorm) or context.method_name != "__call__":
            return call(*arguments, **keywords)
        x, *given = arguments
        running = given[0] if given else keywords.get("use_running_average")
        running = layer.use_running_average if running is None else running
        masked = keywords.get("mask") is not None
        if running or layer.is_initializing() or layer.axis_name or masked:
            return call(*arguments, **keywords)
        averages: dict[str, Any] = {
            name: layer.get_variable("batch_stats", name) for name in ("mean", "var")
        }
        statistics = _statistics(x, layer.axis, axis_name, counts)
        # Flax's own layer normalises, by what it takes to be running averages.
        for name, value in statistics.items():
            layer.put_variable("batch_stats", name, value)
        result = layer.clone(parent=layer.scope, use_running_average=True)(x)
        for name, value in statistics.items():
            layer.put_variable("batch_stats", name, _moved(layer, averages[name], value))
        return result

    with nn.intercept_methods(normalise):
        yield


class Held:
    """Carries what is no part of an NNX module's structure."""

    def __init__(self, value: Any) -> None:
        self.value = value


@lru_cache
def nnx_over_devices(kind: type[nnx.BatchNorm]) -> type[nnx.BatchNorm]:
    """The class of an `nnx.BatchNorm` that does the same, by its `jdss_batch`: axis and counts."""

    def call(self: Any, x: Any, use_running_average: Any = None, *, mask: Any = None) -> Any:
        running = self.use_running_average if use_running_average is None else use_running_average
        if running or self.axis_name or mask is not None:
            return kind.__call__(self, x, use_running_average, mask=mask)
        averages = {name: getattr(self, name).get_value() for name in ("mean", "var")}
        statistics = _statistics(x, self.axis, *self.jdss_batch.value)
        for name, value in statistics.items():
            getattr(self, name).set_value(value)
        result = kind.__call__(self, x, use_running_average=True)
        for name, value in statistics.items():
            getattr(self, name).set_value(_moved(self, averages[name], value))
        return result

    made: type[nnx.BatchNorm] = types.new_class(
        kind.__name__, (kind,), exec_body=lambda body: body.update(__call__=call)
    )
    return made


def _moved(layer: Any, average: Any, value: jax.Array) -> Any:
    return layer.momentum * average + (1 - layer.momentum) * value


def _statistics(
    x: jax.Array, axis: int | Sequence[int], axis_name: str, counts: jax.Array
) -> dict[str, jax.Array]:
    """Mean and variance of every feature, float32, over the examples that count on all devices."""
    features = {place % x.ndim for place in (axis if isinstance(axis, Sequence) else (axis,))}
    axes = tuple(place for place in range(x.ndim) if place not in features)
    values_an_example = math.prod(x.shape[place] for place in axes if place)

    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    weights = counts.reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype)
    sums = counts.sum(), jnp.sum(weights * x, axes), jnp.sum(weights * x**2, axes)
    examples, total, squares = jax.lax.psum(sums, axis_name)
    mean, square = (value / (examples * values_an_example) for value in (total, squares))
    return {"mean": mean, "var": jnp.maximum(square - mean**2, 0)}
