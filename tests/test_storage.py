"""Storages: opened by name, shared by processes that claim places, and clear when they fail."""

import os
import pickle
import sqlite3
import subprocess
import tempfile
import time

import optuna
import pytest
from optuna.storages import InMemoryStorage, JournalStorage, RDBStorage
from optuna.trial import TrialState

from jdss.tuning import claiming, resuming
from jdss.tuning.database import PatientStorage
from jdss.tuning.sampling import PLACE
from jdss.tuning.storage import StorageError, open_storage
from tests import crew
from tests.postgresql import postgresql  # noqa: F401


@pytest.fixture(params=["sqlite", "journal", "postgresql"])
def url(request, tmp_path):
    """A storage of each kind that processes can share."""
    if request.param == "postgresql":
        return request.getfixturevalue("postgresql").new_database()
    return {"sqlite": f"sqlite:///{tmp_path}/s.db", "journal": f"journal:///{tmp_path}/s.log"}[
        request.param
    ]


def new_study(storage):
    created = optuna.create_study(storage=storage, study_name="shared", load_if_exists=True)
    return claiming.SharedStudy("shared", created._storage)


def test_storages_are_opened_by_name(tmp_path):
    assert isinstance(open_storage(None), InMemoryStorage)
    mine = InMemoryStorage()
    assert open_storage(mine) is mine
    for name in (f"journal:///{tmp_path}/a.log", f"{tmp_path}/b.journal", tmp_path / "c.log"):
        assert isinstance(open_storage(name), JournalStorage)
    assert {path.name for path in tmp_path.iterdir()} == {"a.log", "b.journal", "c.log"}
    assert isinstance(open_storage(f"sqlite:///{tmp_path}/d.db"), PatientStorage)


def test_a_journal_url_is_relative_to_the_directory_as_one_of_sqlite_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    open_storage("journal:///here.log")
    assert (tmp_path / "here.log").exists()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"storage": 3}, TypeError, "storage must be an Optuna storage, or a URL"),
        ({"storage": "search"}, ValueError, "storage must be a URL such as 'sqlite:"),
        ({"storage": "nosuch://host/db"}, ValueError, "storage must be a URL such as 'sqlite:"),
        ({"storage": "journal:///"}, ValueError, "must name a file"),
        ({"storage": "sqlite:///x.db", "grace_period": 20}, ValueError, "at least three times"),
        ({"storage": "sqlite:///x.db", "heartbeat_interval": 0}, ValueError, "grace_period must"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, error, message):
    with pytest.raises(error, match=message):
        open_storage(**arguments)


def test_every_call_of_the_interface_waits_for_the_database():
    """A new version of Optuna may add calls: then this says which."""
    shared = {name for name in vars(optuna.storages.BaseStorage) if not name.startswith("_")}
    local = {
        "check_trial_is_updatable",  # looks at its arguments only
        "remove_session",
        "create_new_trial",  # calls _create_new_trial
        "set_trial_param",  # _set_trial_param
        "get_best_trial",  # _get_best_trial_id
        "get_n_trials",  # get_all_trials, and below get_trial
        "get_trial_number_from_id",
        "get_trial_param",
        "get_trial_params",
        "get_trial_user_attrs",
        "get_trial_system_attrs",
    }
    patient = {name for name in shared if hasattr(getattr(PatientStorage, name), "__wrapped__")}
    assert shared - patient <= local


def test_places_are_claimed_in_order_and_given_back_by_the_dead(url):
    study = new_study(open_storage(url))
    first, second = (claiming.claim_place(study, 2) for _ in range(2))
    # Both are of this process, which does not run them: they were left behind.
    trials = study.trials
    assert [trial.user_attrs[PLACE] for trial in trials] == [0, 0]
    assert [trial._trial_id for trial in trials] == [first, second]
    assert [trial.state for trial in trials] == [TrialState.FAIL, TrialState.RUNNING]
    assert resuming.was_cut_off(trials[0])


def test_of_two_claims_on_one_place_the_first_counts(url):
    study = new_study(open_storage(url))

    def create():
        trial = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs={PLACE: 0})
        return study._storage.create_new_trial(study._study_id, trial)

    first, second = create(), create()
    assert claiming._keep_if_first(study, [second], 0) is None
    assert claiming._keep_if_first(study, [first], 0) == first
    assert [trial.state for trial in study.trials] == [TrialState.RUNNING, TrialState.FAIL]


def test_enqueued_trials_take_the_first_places(url):
    study = new_study(open_storage(url))
    study.enqueue_trial({"x": 0.25})
    with study.sharing(2):
        assert study.ask().suggest_float("x", 0, 1) == 0.25
    assert study.trials[0].user_attrs[PLACE] == 0


def test_a_trial_that_kills_every_worker_is_given_up():
    study = new_study(None)
    for _ in range(claiming.MOST_DEATHS):
        claiming.claim_place(study, 1)  # and is left behind
    assert claiming.claim_place(study, 1) is None
    (trial,) = resuming.finished_trials(study)
    assert "its worker died 4 times" in trial.user_attrs["jdss:failure"]
    assert len(study.trials) == claiming.MOST_DEATHS + 1


def test_ctrl_c_before_a_trial_has_begun_gives_its_place_back(tmp_path, monkeypatch):
    from jdss.tuning.study import optimize

    study = new_study(open_storage(f"sqlite:///{tmp_path}/s.db"))

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(study.sampler, "before_trial", interrupt)
    with study.sharing(1), pytest.raises(KeyboardInterrupt):
        optimize(study, lambda trial: 1.0)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL]
    assert study.trials[0].user_attrs["jdss:interrupted"] == "KeyboardInterrupt()"


def test_a_worker_that_was_taken_for_dead_does_not_count_its_trial_twice(tmp_path):
    from jdss.tuning.study import optimize

    study, runs = new_study(open_storage(f"sqlite:///{tmp_path}/s.db")), []

    def run_trial(trial):
        runs.append(trial.number)
        if len(runs) == 1:  # what another worker does, seeing no heartbeat
            study._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
        trial.set_user_attr("late", True)
        return 1.0

    with study.sharing(2):
        optimize(study, run_trial)
    assert runs == [0, 1, 2]
    finished = resuming.finished_trials(study)
    assert [(trial.number, trial.user_attrs[PLACE]) for trial in finished] == [(1, 0), (2, 1)]


def test_a_journal_says_what_it_waits_for(tmp_path):
    """A trial of another machine, which may be dead: nobody can tell from here."""
    study = new_study(open_storage(tmp_path / "s.log"))
    worker = {"host": "elsewhere pid:[1]", "pid": 1, "started": None}
    trial = optuna.trial.create_trial(
        state=TrialState.RUNNING, user_attrs={PLACE: 0, resuming.WORKER: worker}
    )
    study._storage.create_new_trial(study._study_id, trial)
    message = r"waiting for trials \[0\], which elsewhere runs: this storage has no heartbeat"
    with (
        study.sharing(1, deadline=time.monotonic() + 2.0),
        pytest.warns(RuntimeWarning, match=message) as caught,
        pytest.raises(claiming.NothingLeftError),
    ):
        study.ask()
    assert len(caught) == 1
    assert study.trials[0].state == TrialState.RUNNING


def other_process(**changes):
    """The process that started this one, as a trial's worker."""
    pid = os.getppid()
    return {"host": resuming._host(), "pid": pid, "started": resuming._started(pid), **changes}


@pytest.mark.parametrize(
    ("worker", "gone"),
    [
        (other_process(), False),
        (other_process(started="1"), True),  # its number was given to another process
        (other_process(started=None), False),  # as on a system without /proc
        (other_process(started=None, pid=2**22 + 1), True),
        (other_process(host="elsewhere", pid=2**22 + 1), False),  # nobody can tell from here
        (None, False),
    ],
)
def test_a_worker_is_gone_only_where_that_is_certain(worker, gone):
    assert resuming.is_gone(worker) == gone


def test_a_killed_process_that_nobody_has_reaped_is_gone():
    with subprocess.Popen(["sleep", "600"]) as process:
        worker = other_process(pid=process.pid, started=resuming._started(process.pid))
        assert not resuming.is_gone(worker)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # and it stays a zombie
        assert resuming.is_gone(worker)


@pytest.mark.parametrize(
    ("worker", "stale"), [(other_process(host="elsewhere"), True), (other_process(), False)]
)
def test_a_trial_without_a_first_heartbeat_is_stale_unless_its_worker_is_seen(
    tmp_path, monkeypatch, worker, stale
):
    storage = open_storage(f"sqlite:///{tmp_path}/s.db", heartbeat_interval=1, grace_period=3)
    study = new_study(storage)
    trial = optuna.trial.create_trial(
        state=TrialState.RUNNING, user_attrs={PLACE: 0, resuming.WORKER: worker}
    )
    trial_id = study._storage.create_new_trial(study._study_id, trial)
    assert storage._get_stale_trial_ids(study._study_id) == []
    now = time.monotonic()
    monkeypatch.setattr("jdss.tuning.database.time.monotonic", lambda: now + 60)
    expected = [trial_id] if stale else []
    assert storage._get_stale_trial_ids(study._study_id) == expected


def test_outside_of_sharing_a_study_asks_as_ever():
    study = new_study(None)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    assert len(study.trials) == 2


def test_workers_that_claim_all_at_once_never_meet(url):
    """Real processes, all of the same rank, so that all want the same place; trials of no time."""
    workers = [crew.Worker(url, 12, seconds=0) for _ in range(3)]
    ran = [number for worker in workers for number in worker.join()]
    study = crew.check_complete(url, 12)
    # What was run is what was completed: a worker that gave way had not begun.
    assert sorted(ran) == [t.number for t in study.trials if t.state == TrialState.COMPLETE]


def test_a_storage_reaches_another_process_with_its_settings(tmp_path):
    storage = open_storage(f"sqlite:///{tmp_path}/s.db", heartbeat_interval=2, grace_period=7)
    new_study(storage)
    again = pickle.loads(pickle.dumps(storage))
    assert (again.heartbeat_interval, again.grace_period) == (2, 7)
    assert new_study(again).study_name == "shared"


# A call that is repeated because its answer got lost -----------------------------------------


def lose_answers(monkeypatch, method):
    """The first answer of a storage's method gets lost on its way."""
    original, lost = getattr(RDBStorage, method), []

    def call(self, *arguments, **options):
        answer = original(self, *arguments, **options)
        if not lost:
            lost.append(answer)
            raise sqlalchemy_error("SQLITE_BUSY")
        return answer

    from jdss.tuning import database

    call.__name__ = method
    monkeypatch.setattr(PatientStorage, method, database._patient(call))
    return lost


def sqlalchemy_error(name):
    import sqlalchemy

    original = sqlite3.OperationalError("database is locked")
    original.sqlite_errorname = name
    return sqlalchemy.exc.OperationalError("statement", {}, original)


@pytest.mark.parametrize(
    "method", ["_create_new_trial", "set_trial_state_values", "set_trial_user_attr"]
)
def test_a_lost_answer_loses_and_doubles_nothing(tmp_path, monkeypatch, method):
    from jdss.tuning.study import optimize

    study = new_study(open_storage(f"sqlite:///{tmp_path}/s.db"))
    lost = lose_answers(monkeypatch, method)

    def run_trial(trial):
        trial.set_user_attr("seen", True)
        return trial.suggest_float("x", 0, 1)

    with study.sharing(3):
        optimize(study, run_trial)
    assert len(lost) == 1
    assert [t.user_attrs[PLACE] for t in resuming.finished_trials(study)] == [0, 1, 2]
    assert [t.state for t in study.trials].count(TrialState.COMPLETE) == 3


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
    with pytest.raises(StorageError, match=rf"{read_only}/s\.\w+ cannot be used: {reason}$"):
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


def test_a_locked_database_is_waited_for_only_so_long(tmp_path):
    storage = open_storage(f"sqlite:///{tmp_path}/s.db", patience=0.5)
    storage.engine.dispose()
    storage.engine_kwargs["connect_args"]["timeout"] = 0.1
    storage = pickle.loads(pickle.dumps(storage))
    other = sqlite3.connect(tmp_path / "s.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError, match=r"has been away for \d+ s .another process keeps it"):
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


# The loop of trials ------------------------------------------------------------------------------


def test_a_search_may_be_written_while_another_worker_looks_for_it(tmp_path):
    """Between its two looks, at what is searched and at the trials, both appear."""
    storage, search = open_storage(f"sqlite:///{tmp_path}/s.db"), {"seed": 0}
    other = new_study(storage)

    class Paused(claiming.SharedStudy):
        looked = False

        def pause(self):
            if not self.looked:
                self.looked = True
                other.set_user_attr(resuming.SEARCH, search)
                other.ask()

        @property
        def user_attrs(self):
            found = super().user_attrs
            self.pause()
            return found

        def get_trials(self, *arguments, **options):
            found = super().get_trials(*arguments, **options)
            self.pause()
            return found

    study = Paused("shared", storage)
    resuming.check_same_search(study, search)
    assert study.looked
    with pytest.raises(resuming.DifferentSearchError, match="seed was 0 and is 1"):
        resuming.check_same_search(study, {"seed": 1})


def take_away(study, trial):
    """What another worker does that takes this one for dead."""
    study._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)


@pytest.mark.parametrize("tells", [True, False])
def test_ctrl_c_in_a_trial_that_was_taken_is_ctrl_c(tmp_path, tells):
    from jdss.tuning.study import optimize

    study, runs = new_study(open_storage(f"sqlite:///{tmp_path}/s.db")), []

    def run_trial(trial):
        runs.append(trial.number)
        take_away(study, trial)
        try:
            raise KeyboardInterrupt
        finally:
            if tells:
                trial.set_user_attr("late", True)

    with study.sharing(2), pytest.raises(KeyboardInterrupt):
        optimize(study, run_trial)
    assert runs == [0]


def test_after_ctrl_c_a_database_that_is_away_is_not_waited_for(tmp_path):
    from jdss.tuning.study import optimize

    storage = open_storage(f"sqlite:///{tmp_path}/s.db", patience=3600.0)
    storage.engine.dispose()
    storage.engine_kwargs["connect_args"]["timeout"] = 0.1
    storage = pickle.loads(pickle.dumps(storage))
    study = new_study(storage)
    other = sqlite3.connect(tmp_path / "s.db", isolation_level=None)

    def run_trial(trial):
        other.execute("BEGIN IMMEDIATE")
        raise KeyboardInterrupt

    try:
        with study.sharing(2), pytest.raises(KeyboardInterrupt):
            optimize(study, run_trial)
    finally:
        other.close()
    assert storage.patience == 3600.0


def test_a_bug_between_trials_is_raised_and_leaves_no_trial_running(tmp_path, monkeypatch):
    """Also where the trial before it was taken by another worker: that one is no excuse."""
    from jdss.tuning.study import optimize

    study, runs = new_study(open_storage(f"sqlite:///{tmp_path}/s.db")), []

    def run_trial(trial):
        runs.append(trial.number)
        take_away(study, trial)
        return 1.0

    def before_trial(*arguments):
        if runs:
            assert len(study.trials) < 4
            raise ValueError("a bug of the sampler")

    monkeypatch.setattr(study.sampler, "before_trial", before_trial)
    with study.sharing(2), pytest.raises(ValueError, match="a bug of the sampler"):
        optimize(study, run_trial)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL] * 2
    assert "a bug of the sampler" in study.trials[1].user_attrs["jdss:interrupted"]


def test_a_process_that_is_there_and_silent_for_ten_grace_periods_has_left_its_trial(
    tmp_path, monkeypatch
):
    storage = open_storage(f"sqlite:///{tmp_path}/s.db", heartbeat_interval=1, grace_period=3)
    study = new_study(storage)
    attributes = {PLACE: 0, resuming.WORKER: other_process()}
    trial = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs=attributes)
    trial_id = study._storage.create_new_trial(study._study_id, trial)
    now = time.monotonic()
    found = []
    for later in (0, 4, 33, 35):
        monkeypatch.setattr("jdss.tuning.database.time.monotonic", lambda at=now + later: at)
        found.append(storage._get_stale_trial_ids(study._study_id))
    assert found == [[], [], [], [trial_id]]


def test_a_mistyped_database_is_refused_without_its_password():
    for url in ("postgre://me:secret@host/db", "postgresql:/me:secret@host/db"):
        with pytest.raises(
            ValueError, match=r"storage must be a URL .* got .*\*\*\*@host"
        ) as caught:
            open_storage(url)
        assert "secret" not in str(caught.value)
