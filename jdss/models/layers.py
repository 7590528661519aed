"""Hooks around the calls of layers, and BatchNorm over a batch that is split over devices."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import lru_cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

Hook = Callable[..., Any]
"""Stands in for a layer's call: is given the layer, its call, and what that is called with."""

_hook: ContextVar[Hook | None] = ContextVar("hook", default=None)


@contextmanager
def intercept(hook: Hook) -> Iterator[None]:
    """Inside, `hook` stands in for the calls of linen modules and of NNX's hookable layers."""

    def catch(
        call: Any, arguments: Any, keywords: Any, context: nn.module.InterceptorContext
    ) -> Any:
        if context.method_name != "__call__":
            return call(*arguments, **keywords)
        return hook(context.module, call, *arguments, **keywords)

    token = _hook.set(hook)
    try:
        with nn.intercept_methods(catch):
            yield
    finally:
        _hook.reset(token)


def make_hookable(part: nnx.Module, path: str) -> None:
    """Lets hooks stand in for the call of an `nnx.Linear` or `nnx.BatchNorm`."""
    if isinstance(part, nnx.Linear | nnx.BatchNorm):
        layer: Any = part
        layer.__class__, layer.jdss_path = _hookable(type(part)), path


@lru_cache
def _hookable(kind: Any) -> Any:
    def call(self: Any, *arguments: Any, **keywords: Any) -> Any:
        own, hook = partial(kind.__call__, self), _hook.get()
        return hook(self, own, *arguments, **keywords) if hook else own(*arguments, **keywords)

    return type(kind)(kind.__name__, (kind,), {"__call__": call})


# BatchNorm ---------------------------------------------------------------------------------------


def whole_batch_statistics(axis_name: str, counts: jax.Array) -> AbstractContextManager[None]:
    """Inside, every BatchNorm in training takes its statistics over a `pmap`ped axis.

    So the number of devices changes no result, and any module may stay as it is. Flax's own
    `axis_name=` would have to be written into it (a layer that has one is left to itself), and
    averages the devices' own means, which is wrong where these hold different numbers of examples.

    `counts`, bool ``[b]``, are the examples of this device that belong to the batch; the others are
    normalised, but do not count.
    """

    def normalise(layer: Any, call: Any, *arguments: Any, **keywords: Any) -> Any:
        if not isinstance(layer, nn.BatchNorm | nnx.BatchNorm):
            return call(*arguments, **keywords)
        x, *given = arguments
        running = given[0] if given else keywords.get("use_running_average")
        running = layer.use_running_average if running is None else running
        if running or layer.axis_name or keywords.get("mask") is not None:
            return call(*arguments, **keywords)
        statistics = _statistics(x, layer.axis, axis_name, counts)
        averages = {name: _get(layer, name) for name in statistics}
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
