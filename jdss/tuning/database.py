"""SQLite and PostgreSQL as storages that wait, and that say in one sentence what is wrong.

Apart from `jdss.tuning.storage`, which imports it where a search is kept in a database: SQLAlchemy
takes half a second to import.
"""

import itertools
import os
import random
import re
import sqlite3
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import Any

import sqlalchemy
from optuna.exceptions import ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from jdss._secrets import hide_passwords
from jdss.tuning.resuming import WORKER, is_gone, is_here
from jdss.tuning.storage import KINDS, RANK, StorageError

_SILENCE = 10  # grace periods without a heartbeat of a process that is there


class PatientStorage(RDBStorage):
    """SQLite or PostgreSQL, waited for when it goes away, with a heartbeat for each trial.

    Every call is repeated, at growing intervals, until `patience` is up. Repeating is safe:
    attributes and parameters are set to the same values again, a trial that was made twice is
    told apart by whoever claims it (`jdss.tuning.claiming`), and a state that was set although
    the answer got lost is recognised below.
    """

    def __init__(
        self, url: str, *, heartbeat_interval: int, grace_period: int, patience: float
    ) -> None:
        self.patience = patience
        self._first_seen: dict[int, float] = {}
        self._silent_since: dict[int, float] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            super().__init__(
                url,
                engine_kwargs={"pool_pre_ping": True, "connect_args": _connect_arguments(url)},
                heartbeat_interval=heartbeat_interval,
                grace_period=grace_period,
            )
        self._begin_at_once()

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        self._begin_at_once()

    def _begin_at_once(self) -> None:
        """Makes every transaction on SQLite a writing one from its start.

        SQLite knows no SELECT … FOR UPDATE: of two workers that read a trial before they write
        it, both would succeed. Now the second waits until the first is done.
        """
        if self.engine.dialect.name == "sqlite":
            sqlalchemy.event.listen(
                self.engine, "begin", lambda connection: connection.exec_driver_sql(_BEGIN)
            )

    def record_heartbeat(self, trial_id: int) -> None:
        """Records a heartbeat; one that gets lost is made up for by the next."""
        with suppress(SQLAlchemyError, StorageInternalError):
            super().record_heartbeat(trial_id)

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        """Trials without a recent heartbeat, but for those that can be seen to be alive.

        After the database was away, no trial has had a heartbeat for a while; but a process that
        is there and sends none for ten grace periods has left its trial behind. Also those are
        stale whose worker died before the first one, which Optuna passes over: they are told by
        this process's own clock, since the clocks of workers may differ.
        """
        stale = super()._get_stale_trial_ids(study_id)
        with self.scoped_session() as session:
            rows = (
                session.query(models.TrialModel.trial_id)
                .outerjoin(models.TrialModel.heartbeats)
                .filter(models.TrialModel.study_id == study_id)
                .filter(models.TrialModel.state == TrialState.RUNNING)
                .filter(models.TrialHeartbeatModel.trial_heartbeat_id.is_(None))
                .all()
            )
        now, known = time.monotonic(), self._first_seen
        self._first_seen = {trial_id: known.get(trial_id, now) for (trial_id,) in rows}
        grace = self.grace_period or 0
        stale += [i for i, seen in self._first_seen.items() if now - seen > grace]
        alive = [trial_id for trial_id in stale if self._is_seen_alive(trial_id)]
        silent = self._silent_since
        self._silent_since = {trial_id: silent.get(trial_id, now) for trial_id in alive}
        too_long = [i for i, since in self._silent_since.items() if now - since > _SILENCE * grace]
        return [trial_id for trial_id in stale if trial_id not in alive or trial_id in too_long]

    def _is_seen_alive(self, trial_id: int) -> bool:
        worker = self.get_trial(trial_id).user_attrs.get(WORKER)
        return is_here(worker) and not is_gone(worker)


def _patient(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, repeated while the database is away."""

    @wraps(method)
    def call(self: PatientStorage, *arguments: Any, **options: Any) -> Any:
        start, pause = time.monotonic(), 0.1
        repeated = False
        while True:
            try:
                return method(self, *arguments, **options)
            except UpdateFinishedTrialError:
                if repeated and _is_done(self, method, *arguments, **options):
                    return True
                raise
            except (SQLAlchemyError, StorageInternalError) as error:
                waited = time.monotonic() - start
                if not _may_pass(error):
                    raise StorageError(_sentence(self.url, error)) from error
                if waited >= self.patience:
                    raise StorageError(_sentence(self.url, error, waited=waited)) from error
            time.sleep(pause)
            pause, repeated = min(2 * pause, 2.0), True

    return call


def _is_done(
    storage: PatientStorage,
    method: Callable[..., Any],
    trial_id: int,
    state: TrialState | None = None,
    values: Any = None,
) -> bool:
    """Whether a state was set by a call whose answer got lost."""
    if method.__name__ != "set_trial_state_values":
        return False
    trial = storage.get_trial(trial_id)
    return trial.state == state and (values is None or list(values) == trial.values)


for _name in (
    "create_new_study",
    "delete_study",
    "set_study_user_attr",
    "set_study_system_attr",
    "get_study_id_from_name",
    "get_study_name_from_id",
    "get_study_directions",
    "get_study_user_attrs",
    "get_study_system_attrs",
    "get_all_studies",
    "_create_new_trial",
    "_set_trial_param",
    "get_trial_id_from_study_id_trial_number",
    "get_trial_number_from_id",
    "get_trial_param",
    "set_trial_state_values",
    "set_trial_intermediate_value",
    "set_trial_user_attr",
    "set_trial_system_attr",
    "get_trial",
    "get_all_trials",
    "_get_trials",
    "_get_best_trial_id",
    "_get_stale_trial_ids",
):
    # What Optuna's cache calls of the storage behind it; the rest of the interface goes through.
    setattr(PatientStorage, _name, _patient(getattr(PatientStorage, _name)))


def open_database(
    url: str, heartbeat_interval: int, grace_period: int, patience: float
) -> RDBStorage:
    """The storage at a URL of SQLAlchemy's; arguments and errors as `open_storage`."""
    url = re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url)
    try:
        parsed = sqlalchemy.make_url(url)
    except sqlalchemy.exc.ArgumentError:
        raise ValueError(
            f"storage must be a URL such as {KINDS}; got {hide_passwords(url)!r}"
        ) from None
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        return RDBStorage(url)  # nobody else can see it, and a heartbeat's thread cannot either
    # A worker starts while the others run: then the database was there a moment ago.
    end = time.monotonic() + (patience if RANK in os.environ else 0.0)
    for attempt in itertools.count():
        try:
            return PatientStorage(
                url,
                heartbeat_interval=heartbeat_interval,
                grace_period=grace_period,
                patience=patience,
            )
        except ImportError as error:
            raise ImportError(
                f"the driver of the storage {hide_passwords(url)} is not installed: "
                f"pip install 'psycopg[binary]' ({error.__cause__ or error})"
            ) from error
        except sqlalchemy.exc.NoSuchModuleError:
            raise ValueError(
                f"storage must be a URL such as {KINDS}; got {hide_passwords(url)!r}"
            ) from None
        except (SQLAlchemyError, StorageInternalError) as error:
            # Several may find no tables and make them at the same moment: all but one fail once.
            in_a_race = attempt < 20 and re.search("already exists|UNIQUE|unique", str(error))
            if not in_a_race and not (_may_pass(error) and time.monotonic() < end):
                raise StorageError(_sentence(url, error)) from error
        time.sleep(0.1 + 0.2 * random.random())
    raise AssertionError("unreachable")


_BEGIN = "BEGIN IMMEDIATE"


def _connect_arguments(url: str) -> dict[str, Any]:
    if url.startswith("sqlite"):
        # Without an isolation level the driver starts no transactions of its own.
        return {"timeout": 10, "isolation_level": None}
    return {"connect_timeout": 10} if url.startswith("postgresql") else {}


def _driver_error(error: BaseException) -> BaseException:
    """The driver's own error: Optuna and SQLAlchemy each wrap it."""
    while isinstance(error, (SQLAlchemyError, StorageInternalError)):
        inner = getattr(error, "orig", None) or error.__cause__
        if inner is None:
            break
        error = inner
    return error


def _may_pass(error: BaseException) -> bool:
    """Whether the same call may succeed later: the server is away, or the file is locked."""
    driver = _driver_error(error)
    if isinstance(driver, sqlite3.Error):
        return _sqlite_name(driver).startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))
    if isinstance(driver, sqlalchemy.exc.PendingRollbackError):
        return True  # Optuna asked again on a connection that had just broken
    state = getattr(driver, "sqlstate", None)
    if state is not None:  # connection lost, shut down, starting, too many, deadlock, lock
        return state[:2] in ("08", "57", "40") or state in ("53300", "55P03")
    lasting = "authentication|does not exist|pg_hba|password|could not translate|not known"
    return type(driver).__name__ in ("OperationalError", "InterfaceError") and not re.search(
        lasting, str(driver)
    )


def _sqlite_name(error: sqlite3.Error) -> str:
    return getattr(error, "sqlite_errorname", "")


_SQLITE_REASONS = {
    "SQLITE_FULL": "the disk is full; make room and run the same command again",
    "SQLITE_IOERR": "the disk is full, or the file may not grow any more ({})",
    "SQLITE_READONLY": "it is read-only",
    "SQLITE_CANTOPEN": "the directory must exist and be writable",
    "SQLITE_NOTADB": "the file is not an SQLite database",
    "SQLITE_CORRUPT": "the file is damaged",
    "SQLITE_BUSY": "another process keeps it locked",
}


def _sentence(url: str, error: BaseException, waited: float | None = None) -> str:
    driver = _driver_error(error)
    reason = " ".join(str(driver).split())
    if isinstance(driver, sqlite3.Error):
        name = _sqlite_name(driver)
        known = [text for start, text in _SQLITE_REASONS.items() if name.startswith(start)]
        reason = known[0].format(reason) if known else reason
    elif getattr(driver, "sqlstate", None) == "53100":
        reason = "the server's disk is full; make room and run the same command again"
    if waited is None:
        return f"the study's storage {hide_passwords(url)} cannot be used: {reason}"
    return (
        f"the study's storage {hide_passwords(url)} has been away for {waited:.0f} s ({reason}): "
        "run the same command when it is back; finished trials are kept"
    )
