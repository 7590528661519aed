"""The one place that knows about `pmap`.

Every value lives in its logical shape, without a leading device axis: arguments and results of a
`pmap`ped function are either *replicated* (axis None: the same on every device) or *sharded*
(axis 0: one slice a device). Inside, `AXIS` names the devices for collectives.

`jax.pmap` is in maintenance; a successor replaces this file and nothing else.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "devices"
REPLICATED = None
SHARDED = 0


def num_devices() -> int:
    """The devices of this process that a parallel function runs on."""
    return jax.local_device_count()


def parallel(
    function: Callable[..., Any],
    in_axes: tuple[int | None, ...],
    out_axes: int | None = REPLICATED,
    donate: tuple[int, ...] = (),
) -> Callable[..., Any]:
    """`pmap` of `function(device, *arguments)` over the local devices.

    Args:
      function: a pure function whose first argument is the index int32[] of the device it runs
        on; collectives over `AXIS` are allowed inside.
      in_axes: REPLICATED or SHARDED for each of the remaining arguments.
      out_axes: the same for the results.
      donate: the positions, among the remaining arguments, of those whose memory is given up.

    Returns:
      The compiled function of the remaining arguments.
    """
    mapped = jax.pmap(
        function,
        axis_name=AXIS,
        in_axes=(SHARDED, *in_axes),
        out_axes=out_axes,
        donate_argnums=tuple(1 + position for position in donate),
    )

    def call(*arguments: Any) -> Any:
        # Placed alike on every call: an argument that arrives with another sharding (a fresh
        # array instead of an earlier result, say) would compile the function again.
        placed = [
            _place(argument, PartitionSpec() if axis is REPLICATED else PartitionSpec(AXIS))
            for argument, axis in zip(arguments, in_axes, strict=True)
        ]
        return mapped(np.arange(num_devices(), dtype=np.int32), *placed)

    return call


def replicate(tree: Any) -> Any:
    """Places a copy of every array on each local device, so that no call copies it again."""
    return _place(tree, PartitionSpec())


def _place(tree: Any, spec: PartitionSpec) -> Any:
    mesh = Mesh(np.asarray(jax.local_devices()), (AXIS,))
    return jax.device_put(tree, NamedSharding(mesh, spec))


def to_shards(array: jax.Array) -> jax.Array:
    """[n, …] to [devices, n / devices, …], for a SHARDED argument."""
    return jnp.reshape(array, (num_devices(), -1, *array.shape[1:]))


def from_shards(array: jax.Array) -> jax.Array:
    """[devices, m, …] to [devices · m, …], for a SHARDED result."""
    return jnp.reshape(array, (-1, *array.shape[2:]))
