"""Where a study is kept: in memory, in a journal file, in SQLite or in PostgreSQL.

A storage that `open_storage` opens waits for a database that goes away for a while, has a
heartbeat where Optuna offers one (SQLite and PostgreSQL; its journal has none), and says in one
sentence what is wrong.
"""

import errno
import json
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend

RANK = "JDSS_WORKER"
"""The environment variable that holds a worker's number among those of its command."""

_JOURNAL = "journal://"
KINDS = "'sqlite:///search.db', 'journal:///search.log' or 'postgresql://user@host/database'"


class StorageError(RuntimeError):
    """The study's storage cannot be reached, read or written; the message says why."""


def open_storage(
    storage: str | os.PathLike[str] | BaseStorage | None,
    *,
    heartbeat_interval: int = 10,
    grace_period: int = 60,
    patience: float = 60.0,
) -> BaseStorage:
    """Opens the storage of a study.

    Args:
      storage: a URL, such as "sqlite:///search.db", "postgresql://user@host/database" or
        "journal:///shared/search.log" (as with SQLite, a fourth slash makes the path absolute);
        the path of a file that ends in .log or .journal, for a journal; None for one in memory.
        An Optuna storage is taken as it is.
      heartbeat_interval: seconds between two heartbeats of a running trial.
      grace_period: seconds without a heartbeat after which a trial is taken to be dead. At least
        three intervals, so that one beat may get lost.
      patience: seconds that a storage which was reached before is waited for when it goes away.

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
            f"storage must be an Optuna storage, or a URL such as {KINDS}; got {storage!r}"
        )
    if not 0 < 3 * heartbeat_interval <= grace_period:
        raise ValueError(
            "grace_period must be at least three times heartbeat_interval, got "
            f"{grace_period} and {heartbeat_interval}"
        )
    url = os.fspath(storage)
    if url.startswith(_JOURNAL):
        return _open_journal(url.removeprefix(_JOURNAL + "/"))
    if "://" not in url and Path(url).suffix in (".log", ".journal"):
        return _open_journal(url)
    from jdss.tuning.database import open_database  # SQLAlchemy takes half a second to import

    return open_database(url, heartbeat_interval, grace_period, patience)


@contextmanager
def telling(error: BaseException | None, storage: BaseStorage) -> Iterator[None]:
    """For what a storage is still to be told while `error` is on its way; None where none is.

    After Ctrl-C a database that is away is not waited for, nor is one that has been waited for in
    vain; and whatever goes wrong in telling it does not take the place of the error.
    """
    if not isinstance(error, (KeyboardInterrupt, StorageError)):
        yield
        return
    with suppress(Exception), impatient(storage):
        yield


@contextmanager
def impatient(storage: BaseStorage) -> Iterator[None]:
    """Inside, a database that is away is not waited for."""
    database: Any = getattr(storage, "_backend", storage)  # behind Optuna's cache
    patience = getattr(database, "patience", None)
    if patience is not None:
        database.patience = 0.0
    try:
        yield
    finally:
        if patience is not None:
            database.patience = patience


# Journal files ----------------------------------------------------------------------------------


class SafeJournalFile(JournalFileBackend):
    """A journal file that a full disk, or a kill in the middle of a line, does not spoil.

    Optuna's own would leave half a line, which the next line joins: then nobody can read on.
    """

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Appends whole lines, or nothing."""
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with (
            _explaining_files(self._file_path),
            _held(self._lock),
            # Unbuffered: what a buffer could not write it would try to write again on closing.
            open(self._file_path, "r+b", buffering=0) as file,
        ):
            size = _end_of_whole_lines(file)
            file.truncate(size)
            file.seek(size)
            try:
                _write_all(file, lines.encode())
                os.fsync(file.fileno())
            except OSError:
                file.truncate(size)
                raise

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """The lines from one on."""
        with _explaining_files(self._file_path):
            yield from super().read_logs(log_number_from)


def _open_journal(path: str) -> JournalStorage:
    if not path:
        raise ValueError("storage must name a file after 'journal:///', got none")
    with _explaining_files(path):
        return JournalStorage(SafeJournalFile(path))


@contextmanager
def _held(lock: Any) -> Iterator[None]:
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _end_of_whole_lines(file: Any) -> int:
    """Where the last newline stands, plus one: what follows was never acknowledged."""
    end: int = file.seek(0, os.SEEK_END)
    start = max(0, end - 2**20)
    file.seek(start)
    tail = file.read(end - start)
    return start + tail.rfind(b"\n") + 1 if tail else end


def _write_all(file: Any, content: bytes) -> None:
    while content:
        content = content[file.write(content) :]


@contextmanager
def _explaining_files(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"the study's journal {path} cannot be used: {_reason(error)}"
        ) from error
    except ValueError as error:  # from json, or of Optuna's own
        raise StorageError(
            f"the study's journal {path} holds a line that is not Optuna's: {error}"
        ) from error


def _reason(error: OSError) -> str:
    reasons = {
        errno.ENOSPC: "the disk is full; make room and run the same command again",
        errno.EDQUOT: "the disk quota is used up; make room and run the same command again",
        errno.EFBIG: "the file may not grow any more; raise the limit and run the command again",
        errno.EACCES: "no permission to write there",
        errno.EROFS: "the file system is read-only",
        errno.ENOENT: "the directory does not exist, or the file was removed",
    }
    return reasons.get(error.errno or 0, str(error))
