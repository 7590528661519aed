"""What is left out of texts that are shown, compared or kept: passwords, places in memory."""

import re

_IN_USER_INFO = re.compile(r"(//[^:/@]*:|:(?![/\s])).*@", re.DOTALL)
_IN_QUERY = re.compile(r"(password=)[^&\s'\"]*", re.IGNORECASE)


def hide_passwords(text: str) -> str:
    """The text of a URL, also of a mistyped one, with *** in place of passwords.

    >>> hide_passwords("postgresql://me:secret@host/searches?sslpassword=another&x=1")
    'postgresql://me:***@host/searches?sslpassword=***&x=1'
    """
    return _IN_QUERY.sub(r"\1***", _IN_USER_INFO.sub(r"\1***@", text))


def without_addresses(text: str) -> str:
    """A text without places in memory, which each process has anew.

    >>> without_addresses("Net(act=<function relu at 0x7f3a5c0>)")
    'Net(act=<function relu>)'
    """
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)
