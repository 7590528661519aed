"""What is typed on the command line, as far as it is read without JAX."""

import importlib
import json
import re
import tempfile
from pathlib import Path
from typing import Any


def value(text: str) -> Any:
    """What a word stands for: an import path for its object, JSON for a mapping, or itself.

    Raises:
      ValueError: for JSON that is none, or a module or attribute that is not there.

    Example:
      >>> value("asha"), value('{"ridge": 0.0}'), value("math:pi")
      ('asha', {'ridge': 0.0}, 3.141592653589793)
    """
    if text.lstrip().startswith(("{", "[")):
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"a mapping must be given in JSON, got {text!r} ({error})") from None
    return attribute(text) if re.fullmatch(r"[\w.]+:[\w.]+", text) else text


def attribute(path: str) -> Any:
    """What `package.module:attribute` names.

    Raises:
      ValueError: for another form, or where there is no such module or attribute.
    """
    module_name, colon, name = path.partition(":")
    if not (module_name and colon and name):
        raise ValueError(f"an import path must be package.module:attribute, got {path!r}")
    try:
        return getattr(importlib.import_module(module_name), name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ValueError(f"{path!r} cannot be imported: {error}") from None


def check_place(option: str, path: Path) -> None:
    """Checks, before hours of work, that a file can be written; makes its directory.

    Raises:
      ValueError, OSError: where it cannot, naming the option.
    """
    if path.is_dir():
        raise ValueError(f"{option} must be a file, but {path} is a directory")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"{option} cannot be written in {path.parent}: {reason}") from None


def one_line(error: Exception) -> str:
    """An error's message, in one line."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split()) or type(error).__name__
