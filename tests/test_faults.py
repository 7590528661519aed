"""Faults, each with one clear sentence: databases that go away, full disks, memory, caches."""

import contextlib
import dataclasses
import os
import re
import resource
import signal
import subprocess
import textwrap
from pathlib import Path

import jax
import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution

import jdss
from jdss.ledger import Ledger
from jdss.training.trial_checkpoint import TrialCheckpoint
from jdss.tuning.storage import StorageError, explained, open_storage
from tests.postgresql import postgresql  # noqa: F401
from tests.searching import SPACE, run_program, tune, values


def test_the_documentation_names_tests_that_exist():
    """The table of faults in docs/faults.md says of each which test proves it."""
    root = Path(__file__).parent.parent
    named, file = 0, None
    for file_name, test in re.findall(
        r"`(\w+\.py|…)::(\w+)", (root / "docs" / "faults.md").read_text(encoding="utf-8")
    ):
        file = file if file_name == "…" else file_name
        assert f"def {test}(" in (root / "tests" / file).read_text(encoding="utf-8"), test
        named += 1
    assert named > 20


# Databases that go away --------------------------------------------------------------------------


def test_a_database_that_goes_away_is_one_sentence_and_the_same_call_goes_on(
    perceptron,
    blobs,
    postgresql,  # noqa: F811
):
    """The server is stopped in the second trial."""
    calls = []

    def select(gradients, budget, **options):
        calls.append(budget)
        if len(calls) == 2:
            postgresql.stop("immediate")
        return jdss.uniform(gradients, budget, key=options["key"])

    options = {"storage": postgresql.new_database(), "study_name": "s", "selection": select}
    try:
        with pytest.raises(
            StorageError, match=r"postgresql\S+ cannot be used: .*goes on"
        ) as caught:
            tune(perceptron, blobs, **options)
        assert "\n" not in str(caught.value)
    finally:
        postgresql.start()
    resumed = tune(perceptron, blobs, **options)
    assert len(calls) == 4  # the first trial was not run again
    assert values(resumed) == values(tune(perceptron, blobs, selection=select))


# Disks -------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one mebibyte, where this process may mount one."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "jdss", str(path)]
    if os.getuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small file system takes root's rights")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def fill(path):
    """Leaves no byte free."""
    with open(path / "filler", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)


FULL = "cannot be used: (database or disk is full|No space left on device);"


def write_much(study):
    """More than fits into what was allocated already."""
    for number in range(1000):
        study.set_user_attr(f"attribute {number}", "x" * 1000)


@pytest.mark.parametrize("name", ["sqlite:///{}/s.db", "journal:///{}/s.log"])
def test_a_full_disk_is_one_sentence_and_loses_nothing(small_disk, name):
    storage = open_storage(name.format(small_disk))
    study = optuna.create_study(storage=storage, study_name="full")
    study.enqueue_trial({"x": 0.5})
    fill(small_disk)
    with pytest.raises(StorageError, match=FULL), explained("s"):
        write_much(study)
    before = len(study.trials)
    os.remove(small_disk / "filler")
    study = optuna.load_study(study_name="full", storage=open_storage(name.format(small_disk)))
    study.enqueue_trial({"x": 0.7})
    again = optuna.load_study(study_name="full", storage=open_storage(name.format(small_disk)))
    assert len(again.trials) == before + 1


@pytest.mark.parametrize("name", ["sqlite:///{}/s.db", "journal:///{}/s.log"])
def test_a_file_that_may_not_grow_is_one_sentence_and_loses_nothing(tmp_path, name):
    """A quota of a kind that needs no root: the largest size of a file of this process."""
    storage = open_storage(name.format(tmp_path))
    study = optuna.create_study(storage=storage, study_name="full")
    study.enqueue_trial({"x": 0.5})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    (file,) = (path for path in tmp_path.iterdir() if path.suffix in (".db", ".log"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 100, limits[1]))
    try:
        with (
            pytest.raises(
                StorageError, match=rf"{FULL}|disk I/O error: .* the disk must have|File too large"
            ),
            explained("s"),
        ):
            write_much(study)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    before = len(study.trials)
    study = optuna.load_study(study_name="full", storage=open_storage(name.format(tmp_path)))
    study.enqueue_trial({"x": 0.7})
    again = optuna.load_study(study_name="full", storage=open_storage(name.format(tmp_path)))
    assert len(again.trials) == before + 1


# The compilation cache ---------------------------------------------------------------------------


def test_a_corrupt_compilation_cache_is_warned_of_and_changes_nothing(tmp_path):
    """In a process of its own: JAX reads the cache's directory once."""
    program = textwrap.dedent(
        f"""
        import warnings
        import jax, jax.numpy as jnp, numpy as np
        jax.config.update("jax_compilation_cache_dir", {str(tmp_path)!r})
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        from tests.conftest import Perceptron
        import jdss

        def select(gradients, budget, **options):
            print(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones(3)))
            raise KeyError("enough")

        inputs = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                jdss.tune(Perceptron(), (inputs, np.arange(60) % 3), trials=1, fraction=0.2,
                          selection=jdss.Selection(select, warm_start=0.0), progress=False)
            except KeyError:
                pass
        for warning in caught:
            if "cache" in str(warning.message):
                print(warning.message)
        """
    )

    def run():
        return run_program(program).stdout.splitlines()

    (value,) = run()
    entries = list(tmp_path.glob("*-cache"))
    assert len(entries) > 2
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:100])
    again, *sentences = run()
    assert again == value
    assert "Error reading persistent compilation cache entry" in sentences[0]


# Memory ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no room"),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nTable"),
    ],
)
def test_a_trial_that_runs_out_of_memory_fails_and_the_search_goes_on(perceptron, blobs, error):
    calls = []

    def select(gradients, budget, **options):
        calls.append(budget)
        if len(calls) == 2:
            raise error
        return jdss.uniform(gradients, budget, key=options["key"])

    result = tune(perceptron, blobs, selection=select, retrain=False)
    assert [trial["state"] for trial in result.trials] == ["complete", "failed", "complete"]
    failure = result.trials[1]["failure"]
    assert failure.startswith("the trial ran out of memory: ")
    assert "\n" not in failure


def test_memory_that_a_device_really_does_not_have_is_recognised(perceptron, blobs):
    """XLA's own error: an array of more bytes than any machine has."""

    def model(width):
        return dataclasses.replace(perceptron, width=width)

    space = {"width": CategoricalDistribution((2**44,)), "epochs": IntDistribution(1, 1)}
    with pytest.raises(jdss.SearchFailedError, match="the trial ran out of memory"):
        tune(model, blobs, space=space, trials=2)


def test_another_error_of_the_device_is_no_lack_of_memory(perceptron, blobs):
    def select(gradients, budget, **options):
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        tune(perceptron, blobs, selection=select)


# Checkpoints inside trials -----------------------------------------------------------------------

LONG = {**SPACE, "epochs": IntDistribution(12, 12)}


def count_stretches(end_at, end):
    """Counts calls of `train_on_subset`; at one, something ends the process or its training."""
    from jdss.training import trial

    original, calls = trial.train_on_subset, []

    def train_on_subset(*arguments, **options):
        calls.append(options)
        if len(calls) == end_at:
            end()
        return original(*arguments, **options)

    return train_on_subset, calls


@pytest.mark.parametrize(
    "selection", ["full", "uniform", pytest.param("grad_match", marks=pytest.mark.slow)]
)
def test_a_trial_goes_on_from_its_checkpoint_to_the_same_result(
    perceptron, blobs, tmp_path, monkeypatch, selection
):
    """A real process that kills itself with SIGKILL in the trial's sixth stretch of training."""
    options = {
        "selection": selection,
        "every": 4,
        "trials": 1,
        "retrain": False,
        "storage": f"sqlite:///{tmp_path}/s.db",
        "checkpoint_every": 0.0,
    }
    saved = {"study_name": "cut", "checkpoints": str(tmp_path / "saved"), **options}
    np.savez(tmp_path / "data.npz", inputs=blobs[0], labels=blobs[1])
    program = textwrap.dedent(
        f"""
        import os, signal
        import numpy as np
        from jdss.training import trial
        from tests.conftest import Perceptron
        from tests.test_faults import LONG, count_stretches, tune

        data = np.load({str(tmp_path / "data.npz")!r})
        trial.train_on_subset, _ = count_stretches(6, lambda: os.kill(os.getpid(), signal.SIGKILL))
        tune(Perceptron(), (data["inputs"], data["labels"]), space=LONG, **{saved!r})
        """
    )
    assert run_program(program, check=False).returncode == -signal.SIGKILL
    (path,) = (tmp_path / "saved").iterdir()
    assert re.fullmatch(r"cut-[0-9a-f]{8}-0\.msgpack", path.name)

    train_on_subset, calls = count_stretches(None, None)
    monkeypatch.setattr("jdss.training.trial.train_on_subset", train_on_subset)
    resumed = tune(perceptron, blobs, space=LONG, **saved)
    resumed_stretches = len(calls)
    whole = tune(perceptron, blobs, space=LONG, study_name="whole", **options)
    # The five before the kill were not run again.
    assert resumed_stretches == len(calls) - resumed_stretches - 5
    assert values(resumed) == values(whole)
    assert resumed.trials[0]["selections"] == whole.trials[0]["selections"]
    assert len(resumed.study.trials) == 1
    assert list((tmp_path / "saved").iterdir()) == []


def test_retraining_goes_on_from_its_checkpoint(perceptron, blobs, tmp_path, monkeypatch):
    options = {"trials": 1, "selection": "full", "space": LONG, "checkpoint_every": 0.0}
    saved = {"storage": f"{tmp_path}/s.log", "study_name": "s", "checkpoints": tmp_path / "saved"}

    def stop():
        raise KeyboardInterrupt

    train_on_subset, calls = count_stretches(12 + 5, stop)
    monkeypatch.setattr("jdss.training.trial.train_on_subset", train_on_subset)
    with pytest.raises(KeyboardInterrupt):
        tune(perceptron, blobs, test=blobs, **options, **saved)
    (path,) = (tmp_path / "saved").iterdir()
    assert re.fullmatch(r"s-[0-9a-f]{8}-retraining\.msgpack", path.name)
    result = tune(perceptron, blobs, test=blobs, **options, **saved)
    assert len(calls) == 12 + 5 + 8
    assert list((tmp_path / "saved").iterdir()) == []
    whole = tune(perceptron, blobs, test=blobs, **options)
    assert result.retraining.test_accuracy == whole.retraining.test_accuracy


def test_searches_of_one_name_have_checkpoints_of_their_own(
    perceptron, blobs, tmp_path, monkeypatch
):
    options = {"trials": 1, "selection": "full", "space": LONG, "retrain": False}
    saved = {"study_name": "s", "checkpoints": tmp_path / "saved", "checkpoint_every": 0.0}
    first = {**options, **saved, "storage": f"{tmp_path}/first.log"}

    def stop():
        raise KeyboardInterrupt

    train_on_subset, _ = count_stretches(6, stop)
    monkeypatch.setattr("jdss.training.trial.train_on_subset", train_on_subset)
    with pytest.raises(KeyboardInterrupt):
        tune(perceptron, blobs, **first)
    (path,) = (tmp_path / "saved").iterdir()
    tune(perceptron, blobs, seed=1, storage=f"{tmp_path}/second.log", **options, **saved)
    assert [*(tmp_path / "saved").iterdir()] == [path]
    train_on_subset, calls = count_stretches(None, None)
    monkeypatch.setattr("jdss.training.trial.train_on_subset", train_on_subset)
    tune(perceptron, blobs, **first)
    assert len(calls) == 12 - 5


def train(checkpoint, problem, perceptron, on_epoch=lambda entry: None):
    from jdss.training.fit import training_on
    from jdss.training.schedule import make_schedule
    from jdss.training.trial import run
    from jdss.training.trial import train as steps

    hyper = jdss.hyperparameters({"epochs": 4, "batch_size": 16})
    return run(
        steps(
            training_on(problem, make_schedule("full")),
            perceptron,
            hyper,
            jax.random.key(0),
            ledger=Ledger(),
            checkpoint=checkpoint,
            on_epoch=on_epoch,
        )
    )


@pytest.fixture
def problem(blobs):
    from jdss.training.problem import make_problem

    return make_problem(blobs, validation=0.1)


def interrupted(path, problem, perceptron):
    def stop(entry):
        if entry["epoch"] == 3:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        train(TrialCheckpoint(path, "mine", every=0.0), problem, perceptron, stop)


@pytest.mark.parametrize("damage", ["half", "empty", "text"])
def test_a_damaged_checkpoint_is_a_warning_and_the_trial_starts_again(
    perceptron, problem, tmp_path, damage
):
    path = tmp_path / "trial.msgpack"
    interrupted(path, problem, perceptron)
    content = path.read_bytes()
    path.write_bytes({"half": content[: len(content) // 2], "empty": b"", "text": b"?"}[damage])
    with pytest.warns(RuntimeWarning, match="cannot be read .* its trial starts again"):
        result = train(TrialCheckpoint(path, "mine"), problem, perceptron)
    assert [entry["epoch"] for entry in result.history] == [1, 2, 3, 4]


def test_a_checkpoint_of_another_trial_is_not_used(perceptron, problem, tmp_path):
    path, epochs = tmp_path / "trial.msgpack", []
    interrupted(path, problem, perceptron)
    train(TrialCheckpoint(path, "another"), problem, perceptron, epochs.append)
    assert len(epochs) == 4
    epochs.clear()
    train(TrialCheckpoint(path, "mine"), problem, perceptron, epochs.append)
    assert [entry["epoch"] for entry in epochs] == [3, 4]


def test_a_checkpoint_that_cannot_be_written_is_a_warning(perceptron, problem, tmp_path):
    (tmp_path / "file").write_text("in the way")
    checkpoint = TrialCheckpoint(tmp_path / "file" / "trial.msgpack", "mine", every=0.0)
    with pytest.warns(RuntimeWarning, match="cannot be written .* the trial goes on") as caught:
        result = train(checkpoint, problem, perceptron)
    assert len(result.history) == 4
    assert len([w for w in caught if "cannot be written" in str(w.message)]) == 1


def test_checkpoints_are_no_more_often_than_asked(perceptron, problem, tmp_path):
    train(TrialCheckpoint(tmp_path / "trial.msgpack", "mine", every=3600.0), problem, perceptron)
    assert list(tmp_path.iterdir()) == []
