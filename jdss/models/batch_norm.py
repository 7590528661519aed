"""BatchNorm over a batch that is split over devices.

`BatchNorm(axis_name=…)` averages the devices' own means, which is wrong where the devices hold
different numbers of examples, and the axis has to be written into the model. Here every BatchNorm
of any module, unchanged, takes its statistics over all examples of all devices, so that the number
of devices changes no result.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from jdss.models.calling import intercept


def whole_batch_statistics(axis_name: str, counts: jax.Array) -> AbstractContextManager[None]:
    """Inside, every BatchNorm in training takes its statistics over a `pmap`ped axis.

    A layer that has an `axis_name` of its own is left to itself. `counts`, bool ``[b]``, are the
    examples of this device that belong to the batch; the others are normalised, but do not count.
    """

    def normalise(layer: Any, call: Any, *arguments: Any, **keywords: Any) -> Any:
        if not isinstance(layer, nn.BatchNorm | nnx.BatchNorm):
            return call(*arguments, **keywords)
        x, *given = arguments
        running = given[0] if given else keywords.get("use_running_average")
        running = layer.use_running_average if running is None else running
        if running or layer.axis_name or keywords.get("mask") is not None:
            return call(*arguments, **keywords)
        averages = {name: _get(layer, name) for name in ("mean", "var")}
        statistics = _statistics(x, layer.axis, axis_name, counts)
        # Flax's own layer normalises, by what it takes to be running averages.
        for name, value in statistics.items():
            _put(layer, name, value)
        if isinstance(layer, nn.BatchNorm):  # takes no argument where the field is set
            call = layer.clone(parent=layer.scope, use_running_average=None)
        result = call(x, use_running_average=True)
        for name, value in statistics.items():
            _put(layer, name, layer.momentum * averages[name] + (1 - layer.momentum) * value)
        return result

    return intercept(normalise)


def _get(layer: Any, name: str) -> Any:
    if isinstance(layer, nnx.BatchNorm):
        return getattr(layer, name).get_value()
    return layer.get_variable("batch_stats", name)


def _put(layer: Any, name: str, value: jax.Array) -> None:
    if isinstance(layer, nnx.BatchNorm):
        getattr(layer, name).set_value(value)
    else:
        layer.put_variable("batch_stats", name, value)


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
