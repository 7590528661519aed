"""Storages: opened by name, and clear when they fail; what a driver finds there, and puts right."""

import os
import sqlite3
import tempfile

import optuna
import pytest
from optuna.storages import InMemoryStorage, JournalStorage, RDBStorage

from jdss.tuning.storage import StorageError, explained, open_storage
from jdss.tuning.study import SearchStudy, finished_trials, open_study, release_running
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


def test_what_a_dead_driver_left_is_run_again_with_what_it_had(url):
    study = new_study(open_storage(url))
    for number in range(3):
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        trial.report(0.5, 1)
        if number == 0:
            study.tell(trial, 1.0)
    study.ask()  # and killed before anything was drawn
    study.enqueue_trial({"x": 0.5})  # by a user, who has to wait for what was before
    before = study.trials
    study = new_study(open_storage(url))
    release_running(study)
    assert [trial.number for trial in finished_trials(study.trials)] == [0]
    release_running(study)  # nothing more happens
    for number in range(1, 5):
        trial = study.ask()
        assert trial.number == number
        trial.suggest_float("x", 0, 1)
        study.tell(trial, 1.0)
    assert [trial.params for trial in study.trials[:3]] == [trial.params for trial in before[:3]]
    assert study.trials[2].intermediate_values == {1: 0.5}
    assert study.trials[4].params["x"] == 0.5
    assert len(finished_trials(study.trials)) == len(study.trials) == 5


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
        ("sqlite:///{}/s.db", "unable to open database file: the directory must exist .* room"),
        ("journal:///{}/s.log", "Permission denied"),
    ],
)
def test_a_read_only_directory_is_one_sentence(read_only, name, reason):
    with pytest.raises(StorageError, match=rf"{read_only}/s\.\w+ cannot be used: {reason};"):
        open_storage(name.format(read_only))


def test_a_directory_that_does_not_exist_is_one_sentence(tmp_path):
    with pytest.raises(StorageError, match="the directory must exist"):
        open_storage(f"sqlite:///{tmp_path}/nowhere/s.db")
    with pytest.raises(StorageError, match="No such file or directory"):
        open_storage(f"{tmp_path}/nowhere/s.log")


def test_a_file_that_is_no_database_is_one_sentence(tmp_path):
    (tmp_path / "s.db").write_bytes(b"not a database " * 100)
    with pytest.raises(StorageError, match="file is not a database"):
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
        pytest.raises(StorageError, match=r"s\.db cannot be used: database is locked"),
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
    storage = InMemoryStorage()
    search = {"seed": 0, "sampler": "random", "direction": "maximize", "space": {"x": None}}
    open_study(storage, "one", search, 3)
    open_study(storage, "one", search, 4)
    with pytest.raises(ValueError, match=r"seed was 0 and is 1; space.x was None and is 'absent'"):
        open_study(storage, "one", {**search, "seed": 1, "space": {"y": 2}}, 3)


def test_a_mistyped_database_is_refused_without_its_password():
    for url in ("postgre://me:secret@host/db", "postgresql:/me:secret@host/db"):
        with pytest.raises(
            ValueError, match=r"storage must be a URL .* got .*\*\*\*@host"
        ) as caught:
            open_storage(url)
        assert "secret" not in str(caught.value)
