"""How programs are compiled, kept on disk from one run to the next, and counted.

A search compiles the same few programs in every process that runs it. JAX can keep them in a
directory (its persistent compilation cache), so that a second run compiles nothing: it traces,
and reads.

On the CPU, where LLVM takes longer to compile LeNet's step than an epoch on a subset lasts, two
options make it faster: loops are written by XLA's older emitters, which saves 40% and makes the
training step no slower, and what runs once a trial is not optimised, which saves 80%.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from jdss import _checks


@dataclass
class CompilationCount:
    """How many programs were needed that the process had not met before.

    Attributes:
      compiled: compiled by XLA.
      read: read from the compilation cache instead.
    """

    compiled: int = 0
    read: int = 0


@contextmanager
def count_compilations() -> Iterator[CompilationCount]:
    """Counts the programs that this process compiles, or reads from its cache, inside.

    Example:
      >>> double = jax.jit(lambda x: 2 * x)
      >>> with count_compilations() as count:
      ...     _ = double(1.0), double(2.0)
      >>> count.compiled + count.read
      1
    """
    count = CompilationCount()

    def on_duration(event: str, duration_secs: float, **_: str | int) -> None:
        del duration_secs
        # Also where the program is read, which `on_event` then takes back.
        count.compiled += event == "/jax/core/compile/backend_compile_duration"

    def on_event(event: str, **_: str | int) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            count.read += 1
            count.compiled -= 1

    jax.monitoring.register_event_duration_secs_listener(on_duration)
    jax.monitoring.register_event_listener(on_event)
    try:
        yield count
    finally:
        jax.monitoring.unregister_event_duration_listener(on_duration)
        jax.monitoring.unregister_event_listener(on_event)


def use_compilation_cache(directory: str | os.PathLike[str] | None) -> None:
    """Keeps every compiled program in a directory, and reads there what is known already.

    Programs of another version of JAX, another machine or other flags are told apart. An entry that
    cannot be read is a warning, and is compiled anew. It is for the whole process, from now on.

    Args:
      directory: made where it is missing. None keeps nothing.

    Raises:
      OSError: where the directory cannot be made.
    """
    if directory is not None:
        directory = Path(directory).expanduser().absolute()
        directory.mkdir(parents=True, exist_ok=True)
        directory = str(directory)
    jax.config.update("jax_compilation_cache_dir", directory)
    # Small programs, too: a search has a hundred of them, which take seconds together.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_raise_persistent_cache_errors", False)
    compilation_cache.reset_cache()  # it would go on with the directory that it began with


def keep_programs(enabled: bool = True) -> None:
    """Whether searches keep their compiled programs on disk, where nobody says where.

    `jdss.tune` does so by itself, below the user's cache directory, so that a second process
    compiles nothing. A cache that JAX was told of (`JAX_COMPILATION_CACHE_DIR`) stays what it is; a
    directory that cannot be written, or entries that cannot be read, are no failure.

    Args:
      enabled: False turns it off for the whole process, from now on.

    Example:
      ```python
      jdss.keep_programs(False)  # before the first search
      ```
    """
    jax.config.update("jax_enable_compilation_cache", enabled)
    if enabled and jax.config.values["jax_compilation_cache_dir"] is None:
        home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        with suppress(OSError, RuntimeError):  # no directory, or no home: then without
            use_compilation_cache(home / "jdss" / "programs")


def keep_programs_by_default() -> None:
    """`keep_programs`, unless that was turned off."""
    if jax.config.values["jax_enable_compilation_cache"]:
        keep_programs()


@cache
def cpu_options(*, runs_often: bool) -> dict[str, Any] | None:
    """Compiler options for the backend: None but on the CPU."""
    if jax.default_backend() != "cpu":
        return None
    options: dict[str, Any] = {"xla_cpu_use_fusion_emitters": False}
    if not runs_often:
        options = {"xla_backend_optimization_level": "0"}
    try:
        jax.jit(lambda: 0).lower().compile(compiler_options=options)
    except jax.errors.JaxRuntimeError:  # another version of XLA, without such an option
        return None
    return options


def jit_for_few_runs(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`jax.jit` of what runs about once a trial: on the CPU its compilation is all its cost.

    Example:
      >>> double = jit_for_few_runs(lambda x: 2 * x)
      >>> int(double(3))
      6
    """

    @cache
    def jitted() -> Callable[..., Any]:
        return jax.jit(function, compiler_options=cpu_options(runs_often=False), **options)

    @wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        if not _checks.is_concrete(arguments, keywords):  # options are for the outermost program
            return function(*arguments, **keywords)
        return jitted()(*arguments, **keywords)

    return call
