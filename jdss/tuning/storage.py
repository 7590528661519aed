"""Where a study is kept: in memory, in a journal file, in SQLite or in PostgreSQL.

Plain Optuna storages. What goes wrong with one is said in one sentence, without passwords; finished
trials are kept, and the same call goes on when it is put right.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from jdss._texts import hide_passwords

_JOURNAL = "journal://"
_KINDS = "'sqlite:///search.db', 'journal:///search.log' or 'postgresql://user@host/database'"
_DRIVERS = {"postgresql": "'psycopg[binary]'", "mysql": "pymysql"}
_CONNECTING = {"sqlite": {"timeout": 30}, "postgresql": {"connect_timeout": 10}}  # seconds


class StorageError(RuntimeError):
    """The study's storage cannot be reached, read or written; the message says why."""


def open_storage(storage: str | os.PathLike[str] | BaseStorage | None) -> BaseStorage:
    """Opens the storage of a study.

    Args:
      storage: a URL, such as "sqlite:///search.db", "postgresql://user@host/database" or
        "journal:///shared/search.log" (as with SQLite, a fourth slash makes the path absolute);
        the path of a file that ends in .log or .journal, for a journal; None for one in memory.
        An Optuna storage is taken as it is.

    Returns:
      An Optuna storage, for `jdss.tune`, `optuna.create_study` or the dashboard.

    Raises:
      StorageError: where it cannot be reached or written, in one sentence.
      ValueError, TypeError: for bad arguments, naming them.
      ImportError: where the database's driver is not installed.

    Example:
      >>> import optuna, tempfile
      >>> storage = open_storage(f"sqlite:///{tempfile.mkdtemp()}/search.db")
      >>> optuna.create_study(storage=storage, study_name="mine").study_name
      'mine'
    """
    if storage is None:
        return InMemoryStorage()
    if isinstance(storage, BaseStorage):
        return storage
    if not isinstance(storage, (str, os.PathLike)):
        raise TypeError(
            f"storage must be an Optuna storage, or a URL such as {_KINDS}; got {storage!r}"
        )
    url = os.fspath(storage)
    with explained(url):
        if url.startswith(_JOURNAL):
            return _open_journal(url.removeprefix(_JOURNAL + "/"))
        if "://" not in url and Path(url).suffix in (".log", ".journal"):
            return _open_journal(url)
        return _open_database(url)


def _open_journal(path: str) -> JournalStorage:
    if not path:
        raise ValueError("storage must name a file after 'journal:///', got none")
    if os.path.exists(path):
        _drop_half_line(path)
    return JournalStorage(JournalFileBackend(path))


def _drop_half_line(path: str) -> None:
    """Removes what a kill, or a full disk, left of a line: the next would join it."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        if file.read() in (b"", b"\n"):
            return
    lock = JournalFileSymlinkLock(path)
    lock.acquire()  # another process may be in the middle of the line
    try:
        with open(path, "r+b") as file:
            content = file.read()
            file.truncate(content.rfind(b"\n") + 1)
    finally:
        lock.release()


def _open_database(url: str) -> RDBStorage:
    import sqlalchemy  # half a second, which a journal need not wait for

    url = re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url)
    try:
        backend = sqlalchemy.make_url(url).get_backend_name()
        # A server that was restarted between two calls is connected to again.
        options = {"pool_pre_ping": True, "connect_args": _CONNECTING.get(backend, {})}
        return RDBStorage(url, engine_kwargs=options)
    except (sqlalchemy.exc.ArgumentError, sqlalchemy.exc.NoSuchModuleError):
        raise ValueError(
            f"storage must be a URL such as {_KINDS}; got {hide_passwords(url)!r}"
        ) from None
    except ImportError as error:
        missing = getattr(error.__cause__ or error, "name", None)
        driver = _DRIVERS.get(backend) if missing in (None, "psycopg") else missing
        raise ImportError(
            f"the driver of the storage {hide_passwords(url)} is not installed: "
            f"pip install {driver or backend} ({error.__cause__ or error})"
        ) from error


@contextmanager
def explained(storage: Any) -> Iterator[None]:
    """A `StorageError` of one sentence in place of what databases, drivers and files raise."""
    try:
        yield
    except Exception as error:
        if storage is None:  # in memory, where nothing fails: it is the user's
            raise
        kind = type(error)
        if isinstance(error, ValueError):  # a line of a journal
            known = kind is json.JSONDecodeError or "Invalid log format" in str(error)
        else:
            packages = ("sqlalchemy.", "sqlite3", "psycopg")
            is_raised_there = isinstance(error, (OSError, StorageInternalError))
            known = is_raised_there or kind.__module__.startswith(packages)
        if not known or kind.__name__ in ("ArgumentError", "NoSuchModuleError"):
            raise
        is_name = isinstance(storage, (str, os.PathLike))
        name = os.fspath(storage) if is_name else getattr(storage, "url", type(storage).__name__)
        raise StorageError(
            f"the study's storage {hide_passwords(str(name))} cannot be used: {_reason(error)}; "
            "finished trials are kept, and the same call goes on when this is put right"
        ) from error


def _reason(error: BaseException) -> str:
    """The words of the driver, or the system: Optuna and SQLAlchemy each wrap their errors."""
    while (inner := getattr(error, "orig", None)) or (
        isinstance(error, StorageInternalError) and (inner := error.__cause__)
    ):
        error = inner
    text = hide_passwords(" ".join(str(error).split()))
    if isinstance(error, OSError):
        return error.strerror or text
    if isinstance(error, ValueError):
        return f"it holds a line that is not Optuna's ({text})"
    # Where SQLite does not say what is wrong with the file.
    if getattr(error, "sqlite_errorname", "").startswith(("SQLITE_CANTOPEN", "SQLITE_IOERR")):
        return f"{text}: the directory must exist and be writable, and the disk must have room"
    return text
