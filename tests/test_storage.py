"""Storages: opened by name, and clear when they fail; what a driver finds there, and puts right."""

import os
import sqlite3
import tempfile

import optuna
import pytest
from optuna.storages import InMemoryStorage, JournalStorage, RDBStorage
from optuna.trial import TrialState

from jdss.tuning.places import INTERRUPTED, PLACE, RETRIED, finished_trials, place_of
from jdss.tuning.storage import StorageError, explained, open_storage
from jdss.tuning.study import SearchStudy, check_same_search, requeue_left_behind
from tests.postgresql import postgresql  # noqa: F401


@pytest.fixture(params=["sqlite", "journal", "postgresql"])
def url(request, tmp_path):
    """A storage of each kind that outlives its process."""
    if request.param == "postgresql":
        return request.getfixturevalue("postgresql").new_database()
    return {"sqlite": f"sqlite:///{tmp_path}/s.db", "journal": f"journal:///{tmp_path}/s.log"}[
        request.param
    ]


def new_study(storage):
    optuna.create_study(storage=storage, study_name="one", load_if_exists=True)
    return SearchStudy("one", storage)


def test_storages_are_opened_by_name(tmp_path):
    assert isinstance(open_storage(None), InMemoryStorage)
    mine = InMemoryStorage()
    assert open_storage(mine) is mine
    for name in (f"journal:///{tmp_path}/a.log", f"{tmp_path}/b.journal", tmp_path / "c.log"):
        assert isinstance(open_storage(name), JournalStorage)
    assert {path.name for path in tmp_path.iterdir()} == {"a.log", "b.journal", "c.log"}
    assert isinstance(open_storage(f"sqlite:///{tmp_path}/d.db"), RDBStorage)


def test_a_journal_url_is_relative_to_the_directory_as_one_of_sqlite_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    open_storage("journal:///here.log")
    assert (tmp_path / "here.log").exists()


@pytest.mark.parametrize(
    ("storage", "error", "message"),
    [
        (3, TypeError, "storage must be an Optuna storage, or a URL"),
        ("search", ValueError, "storage must be a URL such as 'sqlite:"),
        ("nosuch://host/db", ValueError, "storage must be a URL such as 'sqlite:"),
        ("journal:///", ValueError, "must name a file"),
        ("mysql+pymysql://me@host/db", ImportError, "pip install pymysql"),
    ],
)
def test_bad_arguments_are_refused_by_name(storage, error, message):
    with pytest.raises(error, match=message):
        open_storage(storage)


def test_what_a_dead_driver_left_is_run_again_in_its_place(url):
    study = new_study(open_storage(url))
    for place in range(3):
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        trial.set_user_attr(PLACE, place)
        if place == 0:
            study.tell(trial, 1.0)
    popped = study.ask()  # and killed before its place was written
    popped.suggest_float("x", 0, 1)
    study.enqueue_trial({"x": 0.5})  # by a user, who has to wait for what was before
    study = new_study(open_storage(url))
    requeue_left_behind(study, None)
    requeue_left_behind(study, None)  # nothing is put there twice
    again = [study.ask() for _ in range(4)]
    for trial in again:
        trial.suggest_float("x", 0, 1)
        study.tell(trial, 1.0)
    trials = study.trials
    cut = {trial.user_attrs[PLACE]: trial for trial in trials if INTERRUPTED in trial.user_attrs}
    assert sorted(cut) == [1, 2, 3]
    assert {trial.state for trial in cut.values()} == {TrialState.FAIL}
    retried = {t.user_attrs[PLACE]: t for t in trials if RETRIED in t.user_attrs}
    for place, trial in retried.items():
        assert trial.params == cut[place].params
        assert trial.user_attrs[RETRIED] == cut[place].number
    assert len(trials) == 8
    enqueued = [t for t in finished_trials(study) if PLACE not in t.user_attrs]
    assert [trial.params["x"] for trial in enqueued] == [0.5]


def test_places_are_the_lowest_that_are_free():
    study = new_study(InMemoryStorage())
    first, second = study.ask(), study.ask()
    assert place_of(study, first) == 1  # the second, which carries none either, holds 0
    first.set_user_attr(PLACE, 0)
    assert place_of(study, second) == 1
    study.enqueue_trial({}, user_attrs={PLACE: 1})
    assert place_of(study, second) == 2


# What goes wrong ---------------------------------------------------------------------------------


@pytest.fixture
def read_only(tmp_path):
    """A directory that this process may read only, also where it is root's."""
    # What is imported late is imported now: another user may not be able to read it.
    open_storage(f"sqlite:///{tmp_path}/s.db")
    open_storage(tmp_path / "s.log")
    directory = tempfile.mkdtemp(prefix="jdss-", dir="/tmp")
    os.chmod(directory, 0o555)
    if os.getuid() == 0:
        os.seteuid(65534)
    try:
        yield directory
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        os.chmod(directory, 0o755)
        os.rmdir(directory)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("sqlite:///{}/s.db", "the directory must exist and be writable"),
        ("journal:///{}/s.log", "no permission to write there"),
    ],
)
def test_a_read_only_directory_is_one_sentence(read_only, name, reason):
    with pytest.raises(StorageError, match=rf"{read_only}/s\.\w+ cannot be used: {reason};"):
        open_storage(name.format(read_only))


def test_a_directory_that_does_not_exist_is_one_sentence(tmp_path):
    with pytest.raises(StorageError, match="the directory must exist"):
        open_storage(f"sqlite:///{tmp_path}/nowhere/s.db")
    with pytest.raises(StorageError, match="the directory does not exist"):
        open_storage(f"{tmp_path}/nowhere/s.log")


def test_a_file_that_is_no_database_is_one_sentence(tmp_path):
    (tmp_path / "s.db").write_bytes(b"not a database " * 100)
    with pytest.raises(StorageError, match="the file is not an SQLite database"):
        open_storage(f"sqlite:///{tmp_path}/s.db")


def test_an_unreachable_database_is_one_sentence_without_the_password(tmp_path):
    pytest.importorskip("psycopg")
    url = f"postgresql://someone:secret@/search?host={tmp_path}"
    with pytest.raises(StorageError, match=r"cannot be used: .*No such file") as caught:
        open_storage(url)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_database_that_does_not_exist_is_not_waited_for(postgresql):  # noqa: F811
    with pytest.raises(StorageError, match='database "nowhere" does not exist'):
        open_storage(postgresql.url("nowhere"))


def test_a_locked_database_is_one_sentence(tmp_path):
    storage = RDBStorage(
        f"sqlite:///{tmp_path}/s.db", engine_kwargs={"connect_args": {"timeout": 0.1}}
    )
    other = sqlite3.connect(tmp_path / "s.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with (
        pytest.raises(StorageError, match=r"s\.db cannot be used: another process keeps it locked"),
        explained(storage),
    ):
        optuna.create_study(storage=storage)
    other.rollback()
    optuna.create_study(storage=storage, study_name="now")


def test_half_a_line_in_a_journal_is_dropped(tmp_path):
    """What a kill in the middle of writing leaves; Optuna itself could not read on."""
    path = tmp_path / "s.log"
    new_study(open_storage(path))
    with open(path, "ab") as file:
        file.write(b'{"op_code": 4, "wor')
    study = new_study(open_storage(path))
    study.enqueue_trial({"x": 0.5})
    study.enqueue_trial({"x": 0.7})
    assert len(new_study(open_storage(path)).trials) == 2


def test_a_journal_that_holds_something_else_is_one_sentence(tmp_path):
    path = tmp_path / "training.log"
    path.write_text("epoch 1: loss 0.3\nepoch 2: loss 0.2\n")
    with pytest.raises(StorageError, match="holds a line that is not Optuna's"):
        open_storage(path)


def test_another_search_is_refused_naming_what_differs():
    study = new_study(InMemoryStorage())
    check_same_search(study, {"seed": 0})
    check_same_search(study, {"seed": 0})
    with pytest.raises(ValueError, match="seed was 0 and is 1"):
        check_same_search(study, {"seed": 1})


def test_a_mistyped_database_is_refused_without_its_password():
    for url in ("postgre://me:secret@host/db", "postgresql:/me:secret@host/db"):
        with pytest.raises(
            ValueError, match=r"storage must be a URL .* got .*\*\*\*@host"
        ) as caught:
            open_storage(url)
        assert "secret" not in str(caught.value)
