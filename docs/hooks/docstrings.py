"""Google style has "Examples:"; the docstrings here say "Example:" where there is one."""

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Renames the section before it is parsed, so that doctests are shown as code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = re.sub(
                r"^([ ]*)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE
            )
