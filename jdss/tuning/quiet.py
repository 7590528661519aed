"""What other libraries say during a search, said once, or not at all."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import optuna

_CACHE = "jax_compilation_cache_dir"


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Optuna's line for every trial would tear the progress bars, which say the same."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(verbosity, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)


@contextmanager
def one_cache_warning() -> Iterator[None]:
    """One sentence for all entries of JAX's compilation cache that cannot be read.

    JAX compiles such a program again, and says so for each.
    """
    told = False
    with warnings.catch_warnings():
        show = warnings.showwarning

        def show_once(message: Warning | str, *arguments: Any, **options: Any) -> None:
            nonlocal told
            if not str(message).startswith("Error reading persistent compilation cache entry"):
                show(message, *arguments, **options)
            elif not told:
                told = True
                text = (
                    f"the compilation cache {jax.config.values[_CACHE]} has entries "
                    "that cannot be read: those programs are compiled again; remove the directory "
                    "to have them cached anew"
                )
                show(RuntimeWarning(text), RuntimeWarning, *arguments[1:], **options)

        warnings.showwarning = show_once
        yield
