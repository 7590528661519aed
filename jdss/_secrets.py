"""Hiding passwords in what is shown, logged or written into result files."""

import re

_IN_USER_INFO = re.compile(r"(//[^:/@]*:|:(?![/\s])).*@", re.DOTALL)
_IN_QUERY = re.compile(r"(password=)[^&\s'\"]*", re.IGNORECASE)


def hide_passwords(text: str) -> str:
    """The text of a URL, also of a mistyped one, with *** in place of passwords.

    >>> hide_passwords("postgresql://me:secret@host/searches?sslpassword=another&x=1")
    'postgresql://me:***@host/searches?sslpassword=***&x=1'
    """
    return _IN_QUERY.sub(r"\1***", _IN_USER_INFO.sub(r"\1***@", text))
