"""BatchNorm over a batch that is split over devices.

`nn.BatchNorm(axis_name=…)` averages the devices' own means, which is wrong where the devices hold
different numbers of examples, and the axis has to be written into the model. Here every
`nn.BatchNorm` of any module, unchanged, takes its statistics over all examples of all devices, so
that the number of devices changes no result.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


@contextmanager
def whole_batch_statistics(axis_name: str, counts: jax.Array) -> Iterator[None]:
    """Inside, every `nn.BatchNorm` in training takes its statistics over a `pmap`ped axis.

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
        if not isinstance(layer, nn.BatchNorm) or context.method_name != "__call__":
            return call(*arguments, **keywords)
        x, *given = arguments
        running = given[0] if given else keywords.get("use_running_average")
        running = layer.use_running_average if running is None else running
        if (
            running
            or layer.is_initializing()
            or layer.axis_name
            or keywords.get("mask") is not None
        ):
            return call(*arguments, **keywords)

        averages: dict[str, Any] = {
            name: layer.get_variable("batch_stats", name) for name in ("mean", "var")
        }
        statistics = _statistics(x, layer, axis_name, counts)
        # Flax's own layer normalises, by what it takes to be running averages.
        for name, value in statistics.items():
            layer.put_variable("batch_stats", name, value)
        result = layer.clone(parent=layer.scope, use_running_average=True)(x)
        for name, value in statistics.items():
            average = layer.momentum * averages[name] + (1 - layer.momentum) * value
            layer.put_variable("batch_stats", name, average)
        return result

    with nn.intercept_methods(normalise):
        yield


def _statistics(
    x: jax.Array, layer: nn.BatchNorm, axis_name: str, counts: jax.Array
) -> dict[str, jax.Array]:
    """Mean and variance of every feature, float32, over the examples that count on all devices."""
    given = layer.axis if isinstance(layer.axis, Sequence) else (layer.axis,)
    features = {axis % x.ndim for axis in given}
    axes = tuple(axis for axis in range(x.ndim) if axis not in features)
    values_an_example = math.prod(x.shape[axis] for axis in axes if axis)

    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    weights = counts.reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype)
    sums = counts.sum(), jnp.sum(weights * x, axes), jnp.sum(weights * x**2, axes)
    examples, total, squares = jax.lax.psum(sums, axis_name)
    mean, square = (value / (examples * values_an_example) for value in (total, squares))
    return {"mean": mean, "var": jnp.maximum(square - mean**2, 0)}
