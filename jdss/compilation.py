"""How programs are compiled, and kept on disk from one run to the next.

On the CPU, where LLVM takes longer to compile LeNet's step than an epoch on a subset lasts, two
options make it faster: loops are written by XLA's older emitters, which saves 40% and makes
training steps and solvers no slower, and what runs once a trial is not optimised, which saves 80%.
"""

import os
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import cache, wraps
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache

from jdss import _checks


def keep_programs(where: bool | str | os.PathLike[str] = True) -> None:
    """Whether, and where, this process keeps compiled programs on disk, and reads those it knows.

    `jdss.tune` does so by itself, so that a second process compiles nothing. Programs of another
    version of JAX, machine or flags are told apart; one that cannot be read is a warning, and is
    compiled anew.

    Args:
      where: a directory. True is one below the user's cache directory, or without one nothing; what
        JAX was told of (`JAX_COMPILATION_CACHE_DIR`) stays what it is. False turns it off.

    Raises:
      OSError: where a directory that was named cannot be made.

    Example:
      ```python
      jdss.keep_programs(False)  # before the first search
      ```
    """
    jax.config.update("jax_enable_compilation_cache", where is not False)
    if where is False:
        return
    known = jax.config.values
    if where is not True or known["jax_compilation_cache_dir"] is None:
        with suppress(OSError, RuntimeError) if where is True else nullcontext():
            cached = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "jdss", "programs")
            directory = (cached if where is True else Path(where)).expanduser().absolute()
            directory.mkdir(parents=True, exist_ok=True)
            jax.config.update("jax_compilation_cache_dir", str(directory))
    # Small programs, too: a search has some thirty of them, which take seconds together. What JAX
    # was told itself stays, unless a directory is named here.
    for name, usual, wanted in (
        ("jax_persistent_cache_min_compile_time_secs", 1.0, 0.0),
        ("jax_persistent_cache_min_entry_size_bytes", 0, -1),
    ):
        if where is not True or known[name] == usual:
            jax.config.update(name, wanted)
    compilation_cache.reset_cache()  # it would go on with the directory that it began with


@cache
def cpu_options(*, runs_often: bool) -> dict[str, Any] | None:
    """Compiler options for the backend: None but on the CPU."""
    if jax.default_backend() != "cpu":
        return None
    often, once = {"xla_cpu_use_fusion_emitters": False}, {"xla_backend_optimization_level": "0"}
    options: dict[str, Any] = often if runs_often else once
    try:
        jax.jit(lambda: 0).lower().compile(compiler_options=options)
    except jax.errors.JaxRuntimeError:  # another version of XLA, without such an option
        return {}
    return options


def jit(function: Callable[..., Any], *, runs_often: bool = True, **options: Any) -> Any:
    """`jax.jit` by these options: of loops such as a solver's, or of what runs once a trial."""
    inner = jax.jit(function, **options)

    @cache
    def outermost() -> Callable[..., Any]:
        return jax.jit(function, compiler_options=cpu_options(runs_often=runs_often), **options)

    @wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        # Compiler options are refused within another program, where a new array is traced, too.
        is_outermost = _checks.is_concrete(arguments, keywords, jnp.zeros(()))
        return (outermost() if is_outermost else inner)(*arguments, **keywords)

    return call
