"""The one place that knows about `pmap`.

Every value lives in its logical shape, without a leading device axis: arguments and results of a
`pmap`ped function are *replicated*, the same on every device. Inside, `AXIS` names the devices for
collectives, and a function takes its share of the work by the index of its device.

Several processes that `jax.distributed.initialize` has joined, of equally many devices, work as
one: each runs the same program on the same arguments and ends with the same results.

`jax.pmap` is in maintenance; a successor replaces this file and nothing else.
"""

import threading
from collections.abc import Callable
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jdss import _checks
from jdss.compilation import cpu_options

AXIS = "devices"
_LOCK = threading.Lock()  # two threads that ask for one program get the same
_MOST_PROGRAMS = 256


def parallel(
    function: Callable[..., Any], donate: tuple[int, ...] = (), *, compile_fast: bool = True
) -> Callable[..., Any]:
    """`pmap` of `function(device, *arguments)` over all devices, as a function of the arguments.

    `function` is given the index int32[] of its device; its results must be the same on all.
    `donate` has the positions, among the arguments, of those whose memory is given up.
    `compile_fast` compiles by the options of `jdss.compilation`, with which training steps are no
    slower, but forward passes are. `prepare` of what is returned compiles, and runs nothing.
    """

    def call(*arguments: Any) -> Any:
        placed = _placed(arguments)
        result = compiled_for(placed)(*placed)
        # Devices that are simulated on a CPU share its threads: two programs at once may each hold
        # those that the other's collectives wait for, for ever.
        is_simulated = jax.default_backend() == "cpu" and jax.local_device_count() > 1
        if is_simulated and _checks.is_concrete(placed):
            jax.block_until_ready(result)
        return result

    def compiled_for(placed: tuple[Any, ...]) -> Callable[..., Any]:
        mapped = _pmapped(function, len(placed) - 1, donate)
        options = cpu_options(runs_often=True) if compile_fast else None
        # With options, which `pmap` does not take, a program is compiled and kept here.
        if options is None or jax.process_count() > 1 or not _checks.is_concrete(placed):
            return mapped
        leaves, structure = jax.tree.flatten(placed)
        with _LOCK:
            program = _program(function, donate, structure, *map(jax.typeof, leaves), *_settings())
        with program.lock:  # two threads that need one program compile it once
            if program.compiled is None:
                program.compiled = mapped.lower(*placed).compile(compiler_options=options)
        compiled: Callable[..., Any] = program.compiled
        return compiled

    def prepare(*arguments: Any) -> None:
        placed = _placed(arguments)
        if hasattr(program := compiled_for(placed), "lower"):  # of `pmap`: read from disk then
            program.lower(*placed).compile()

    call.prepare = prepare  # type: ignore[attr-defined]
    return call


def _placed(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments placed alike on every call: another sharding would compile the function again."""
    local = jax.local_device_count()
    own_devices = np.arange(local, dtype=np.int32) + jax.process_index() * local
    return own_devices, *replicate(arguments)


@lru_cache(_MOST_PROGRAMS)
def _program(*signature: Any) -> SimpleNamespace:
    """The one program of a signature."""
    return SimpleNamespace(lock=threading.Lock(), compiled=None)


def forget_compiled() -> None:
    """`jax.clear_caches`, and what is compiled here: everything compiles anew."""
    jax.clear_caches()
    _program.cache_clear()


def _settings() -> tuple[Any, ...]:
    """The settings of JAX, of this thread, that a program is traced under."""
    names = ("default_matmul_precision", "enable_x64", "threefry_partitionable", "debug_nans")
    return tuple(getattr(jax.config, f"jax_{name}") for name in names)


@lru_cache(_MOST_PROGRAMS)
def _pmapped(function: Callable[..., Any], num_arguments: int, donate: tuple[int, ...]) -> Any:
    return jax.pmap(
        function,
        axis_name=AXIS,
        in_axes=(0, *[None] * num_arguments),
        out_axes=None,
        donate_argnums=tuple(1 + position for position in donate),
    )


def replicate(tree: Any) -> Any:
    """Places a copy of every array on each local device, so that no call copies it again."""
    everywhere = _everywhere(tuple(jax.local_devices()))
    leaves, structure = jax.tree.flatten(tree)
    # What is there already is left out: to ask JAX for it takes as long as a small forward pass.
    away = [n for n, leaf in enumerate(leaves) if getattr(leaf, "sharding", None) != everywhere]
    moved = jax.device_put([leaves[n] for n in away], everywhere)
    for n, leaf in zip(away, moved, strict=True):
        leaves[n] = leaf
    return jax.tree.unflatten(structure, leaves)


@lru_cache(1)
def _everywhere(devices: tuple[Any, ...]) -> NamedSharding:
    return NamedSharding(Mesh(np.asarray(devices), (AXIS,)), PartitionSpec())
