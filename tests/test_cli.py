"""The command line: every option of the functions, and exit statuses that scripts can trust."""

import dataclasses
import inspect
import json
import re
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import optuna
import pytest
from flax import nnx
from optuna.distributions import FloatDistribution

import jdss
from jdss import _arguments, cli

MODEL = "tests.conftest:Perceptron"
SPACE = """
learning_rate = {type = "float", low = 0.01, high = 0.1, log = true}
epochs = {type = "int", low = 2, high = 3}
batch_size = {type = "categorical", choices = [16]}
"""
DOCUMENTATION = Path(__file__).parent.parent / "docs" / "search.md"
# Of `tune`: where the result file goes, whether programs are kept, and what says where data is.
ONLY_ON_THE_COMMAND_LINE = {"out", "programs", "data_dir", "data_on", "address"}


def announce(study, trial):
    print("a trial is done", flush=True)


class Outcome(NamedTuple):
    exit_code: int
    output: str


def run(*arguments):
    """What a command prints, on both streams, and its exit status."""
    printed, status = StringIO(), 0
    with redirect_stdout(printed), redirect_stderr(printed):
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = end.code
    return Outcome(status, printed.getvalue())


@pytest.fixture(scope="module")
def files(tmp_path_factory, blobs):
    directory = tmp_path_factory.mktemp("files")
    inputs, labels = blobs
    np.savez(directory / "data.npz", inputs=inputs, labels=labels)
    np.savez(directory / "test.npz", inputs=inputs[:30], labels=labels[:30])
    (directory / "space.toml").write_text(SPACE)
    generator = np.random.default_rng(0)
    np.savez(
        directory / "layer.npz",
        logits=generator.normal(size=(90, 3)),
        features=generator.normal(size=(90, 4)),
        labels=labels[:90],
    )
    return directory


def search(files, *more):
    space = ("--space", files / "space.toml")
    quiet = ("--no-progress", "--fraction", 0.2, "--trials", 2)
    return run("tune", MODEL, files / "data.npz", *space, *quiet, *more)


def arguments_of(name):
    """The arguments of a command by name, with their defaults."""
    parameters = inspect.signature(cli.COMMANDS[name]).parameters.values()
    return {one.name: one.default for one in parameters}


def options(name):
    """The options and positional arguments of a command, as its help shows them."""
    shown = run(name, "--help")
    assert shown.exit_code == 0
    return {word.replace("-", "_") for word in re.findall(r"--([a-z][a-z-]*)", shown.output)}


@pytest.mark.parametrize("settings", [jdss.Selection, jdss.Task, jdss.Search])
def test_every_setting_is_an_option_with_its_docstring_as_help(settings):
    names = {field.name for field in dataclasses.fields(settings)}
    assert names <= options("tune")
    shown = " ".join(re.sub(r"[│─]", " ", run("tune", "--help").output).split())
    documented = re.findall(r"^  (?:  )?(\w+): (.{20})", inspect.getdoc(settings), re.MULTILINE)
    described = {name: text for name, text in documented if name in names}
    assert described.keys() == names
    assert all(text in shown for text in described.values())


@pytest.mark.parametrize("name", ["tune", "select", "report"])
def test_every_argument_of_the_function_is_one_of_the_command(name):
    arguments = set(inspect.signature(getattr(jdss, name)).parameters)
    own = set(arguments_of(name))
    if name == "select":
        arguments -= {"logits", "features", "labels"}  # which are in the file
        own -= {"file", "out"}
    assert own - (ONLY_ON_THE_COMMAND_LINE if name == "tune" else set()) == arguments
    assert own - {"model", "data", "storage", "selection", "task", "search"} <= options(name)


@pytest.mark.parametrize("name", ["tune", "select", "report"])
def test_defaults_of_the_command_are_those_of_the_function(name):
    """Where they are of a plain kind; None, texts and lists stand for what is read from them."""
    function = inspect.signature(getattr(jdss, name)).parameters
    compared = 0
    for name_of_one, own in arguments_of(name).items():
        default = getattr(function.get(name_of_one), "default", inspect.Parameter.empty)
        plain = isinstance(default, (int, float, str)) or dataclasses.is_dataclass(default)
        if plain and name_of_one != "out":
            expected = "0.1" if name_of_one == "validation" else default
            if name_of_one != "selection":  # a name there, the dataclass here
                assert own == expected, name_of_one
                compared += 1
    assert compared >= (8 if name == "tune" else 1) - (name == "report")
    assert jdss.Selection().method == "grad_match"


@pytest.mark.parametrize("name", ["tune", "objective", "select"])
def test_every_argument_is_in_the_documentation(name):
    documented = set(re.findall(r"\w+", DOCUMENTATION.read_text()))
    assert set(inspect.signature(getattr(jdss, name)).parameters) <= documented


@pytest.mark.parametrize(
    ("name", "taught"),
    [
        ("tune", ("jdss tune lenet digits", "learning_rate = {type", "selection options")),
        ("select", ("jdss select layer.npz", "--budget INT")),
    ],
)
def test_help_teaches_and_does_not_import_jax(name, taught):
    program = (
        "import sys; from jdss.cli import main\n"
        f"try: main([{name!r}, '--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print(sorted({'jax', 'optuna', 'numpy'} & set(sys.modules)))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert all(text in shown.stdout for text in taught)
    assert shown.stdout.splitlines()[-1] == "[]", shown.stderr


def test_help_that_is_read_in_part_ends_without_a_word():
    command = f"{sys.executable} -m jdss tune --help | head -n 1"
    shown = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("usage: jdss tune")
    assert shown.stderr == ""


def test_without_a_command_all_are_shown_and_an_unknown_one_is_a_mistake():
    assert run().exit_code == run("--help").exit_code == 0
    assert all(f"jdss {name}" in run().output for name in cli.COMMANDS)
    assert run("tone") == Outcome(2, "jdss: no command 'tone'\n\n" + run().output)


def test_a_search_is_kept_reported_and_written(files, tmp_path):
    storage = f"sqlite:///{tmp_path}/search.db"
    kept = ("--storage", storage, "--study", "mine", "--out", tmp_path / "result.json")
    first = ("--enqueue", '{"learning_rate": 0.05, "epochs": 3}')
    result = search(files, *kept, *first, "--test", files / "test.npz", "--sampler", "random")
    assert result.exit_code == 0, result.output
    assert "2 trials: 2 complete" in result.output
    record = json.loads((tmp_path / "result.json").read_text())
    assert record["trials"][0]["hyperparameters"]["learning_rate"] == 0.05
    assert record["search"]["sampler"] == "random"
    assert 0 <= record["retraining"]["test_accuracy"] <= 1

    page = tmp_path / "report.html"
    assert run("report", storage, "--study", "mine", "--out", page).exit_code == 0
    assert "<title>mine</title>" in page.read_text()
    assert run("report", storage, "--out", page).exit_code == 0  # the only study there
    missing = run("report", storage, "--study", "yours", "--out", page)
    assert missing.exit_code == 2
    assert "one of the storage's ('mine'), got 'yours'" in missing.output


def test_a_method_has_its_own_usual_settings_on_the_command_line(files, tmp_path):
    record = {}
    for method in ("milo", "grad_match"):
        out = tmp_path / f"{method}.json"
        assert search(files, "--method", method, "--no-retrain", "--out", out).exit_code == 0
        strategy = json.loads(out.read_text())["strategy"]
        record[method] = strategy["select_every"], strategy["warm_start"]
    assert record == {"milo": (1, 0.0), "grad_match": (5, 0.5)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fraction", 3], r"fraction must be in (0, 1], got 3.0"),
        (["--sampler", "best"], "sampler must be one of"),
        (["--space", "nowhere.toml"], "nowhere.toml"),
        (["--space", "space"], "space must be one of 'default', 'published'; got 'space'"),
        (["--options", "[1]"], "options must be a mapping, got list"),
        (["--options", "{1"], "a mapping must be given in JSON, got '{1'"),
        (["--metric", "tests.conftest:nothing"], "cannot be imported"),
        (["--validation", "half"], "--validation must be an .npz file"),
        (["--enqueue", '{"epochs": 99}'], "must be in IntDistribution"),
        (["--trials", "many"], "invalid literal for int()"),
        (["--no-such-option"], "nrecognized"),
    ],
)
def test_mistakes_give_one_sentence_and_status_2(files, arguments, message):
    result = search(files, *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_unknown_models_data_and_files_give_status_2(files):
    for arguments, message in [
        (("tune", "lenett", files / "data.npz"), "model must be one of lenet"),
        (("tune", "lenet", "minst"), "data must be one of cifar10, cifar100, digits, mnist"),
        (("tune", "lenet", files / "none.npz"), "there is no file"),
        (("tune", "lenet", files / "layer.npz"), "it lacks inputs"),
        (("report", f"sqlite:///{files}/none.db"), "storage must be there already"),
    ]:
        result = run(*arguments)
        assert (result.exit_code, message in result.output) == (2, True), result.output


def test_a_search_in_which_every_trial_failed_has_status_1(files, tmp_path):
    space = tmp_path / "space.json"
    described = {"learning_rate": [1e30], "batch_size": [16], "epochs": [2]}
    space.write_text(
        json.dumps({n: {"type": "categorical", "choices": c} for n, c in described.items()})
    )
    result = search(files, "--space", space)
    assert result.exit_code == 1
    assert "all 2 trials of the search failed" in result.output


def test_an_interruption_has_status_130(files, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("jdss.tune", interrupt)
    result = search(files)
    assert result.exit_code == 130
    assert "jdss: interrupted" in result.output


@pytest.mark.slow
def test_ctrl_c_has_status_130(files, tmp_path):
    command = [sys.executable, "-m", "jdss", "tune", MODEL, str(files / "data.npz")]
    command += ["--space", str(files / "space.toml"), "--trials", "1000", "--no-progress"]
    command += ["--storage", f"sqlite:///{tmp_path}/search.db", "--study", "s"]
    command += ["--callbacks", "tests.test_cli:announce"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"a trial is done\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"jdss: interrupted" in errors
    assert b"Traceback" not in errors


# --- select ---


@pytest.mark.parametrize("method", ["craig", "glister"])
def test_select_writes_the_subset_that_the_function_gives(files, tmp_path, method):
    out = tmp_path / "subset.npz"
    chosen = run("select", files / "layer.npz", "--method", method, "--budget", 9, "--out", out)
    assert chosen.exit_code == 0, chosen.output
    with np.load(files / "layer.npz") as layer, np.load(out) as written:
        expected = jdss.select(
            layer["logits"], layer["features"], layer["labels"], method=method, budget=9
        )
        np.testing.assert_array_equal(written["indices"], expected.indices)
        np.testing.assert_array_equal(written["weights"], expected.weights)
    assert len(set(np.asarray(expected.indices).tolist())) == 9


def test_select_by_class_takes_from_every_class(files, tmp_path):
    out = tmp_path / "subset.npz"
    lifting = ("--lifting", "per_class", "--method", "craig", "--fraction", 0.1)
    assert run("select", files / "layer.npz", *lifting, "--out", out).exit_code == 0
    written = jdss.Subset.load(out)
    with np.load(files / "layer.npz") as layer:
        assert sorted(layer["labels"][written.indices]) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert sum(written.weights.tolist()) == pytest.approx(90)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", 100], "budget must be in 1..90, got 100"),
        (["--budget", 3, "--fraction", 0.1], "budget must be left out with a fraction"),
        (["--method", "full"], "method must be one of 'craig', 'glister'"),
        (["--lifting", "by_class"], "lifting must be one of"),
        (["--out", "subset.txt"], "--out must end in .npz"),
    ],
)
def test_select_refuses_with_status_2(files, arguments, message):
    result = run("select", files / "layer.npz", *arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_spaces_are_read_in_every_form(tmp_path):
    lr = optuna.distributions.FloatDistribution(0.01, 0.1, log=True)
    (tmp_path / "own.json").write_text(
        json.dumps({"lr": json.loads(optuna.distributions.distribution_to_json(lr))})
    )
    assert _arguments.space(str(tmp_path / "own.json")) == {"lr": lr}
    (tmp_path / "bad.toml").write_text('lr = {type = "float", low = 1}')
    with pytest.raises(ValueError, match=r"space\['lr'\].*high"):
        _arguments.space(str(tmp_path / "bad.toml"))
    (tmp_path / "worse.toml").write_text("lr = 3")
    with pytest.raises(ValueError, match=r"space\['lr'\] must have a type"):
        _arguments.space(str(tmp_path / "worse.toml"))


def test_a_damaged_file_of_arrays_is_one_sentence(files, tmp_path):
    content = (files / "data.npz").read_bytes()
    half, changed = tmp_path / "half.npz", tmp_path / "changed.npz"
    half.write_bytes(content[: len(content) // 2])
    changed.write_bytes(content[:300] + bytes(100) + content[400:])
    for path in (half, changed):
        result = run("tune", MODEL, path)
        assert result.exit_code == 2
        assert f"{path} must be an .npz file" in result.output


def test_where_the_result_goes_is_looked_at_first(files, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for place, message in ((tmp_path, "is a directory"), (tmp_path / "file" / "r.json", "exists")):
        result = run("tune", "nosuchmodel", "nosuchdata", "--out", place)
        assert result.exit_code == 2
        assert message in result.output


def test_a_result_is_shown_also_where_it_cannot_be_written(files, tmp_path, monkeypatch):
    def fill(*arguments):
        raise OSError("the disk is full")

    monkeypatch.setattr("jdss._arguments.write_result", fill)
    result = search(files, "--trials", 1, "--out", tmp_path / "result.json", "--no-retrain")
    assert result.exit_code == 2
    assert "1 trials: 1 complete" in result.output
    assert "the disk is full" in result.output


def test_a_result_file_holds_no_password(tmp_path, monkeypatch):
    url = "postgresql://me:se/c@ret@host/db?sslpassword=another"
    for words in (["--storage", url], [f"--storage={url}"]):
        monkeypatch.setattr(sys, "argv", ["jdss", "tune", *words])
        result = SimpleNamespace(as_dict=lambda: {"rung": np.float32(0.5)})
        _arguments.write_result(tmp_path / "result.json", result, "digits")
        written = json.loads((tmp_path / "result.json").read_text())
        assert not re.search(r"se/c|\bret|another", written["command"])
        assert "me:***@host/db" in written["command"]
        assert (written["rung"], written["versions"]["jdss"]) == (0.5, jdss.__version__)


class ToldNnx(nnx.Module):
    def __init__(self, num_classes: int, rngs: nnx.Rngs):
        self.first = nnx.Linear(4, 8, rngs=rngs)
        self.last = nnx.Linear(8, num_classes, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.first(x)))


class FixedNnx(ToldNnx):
    def __init__(self, rngs: nnx.Rngs):
        super().__init__(3, rngs)


@pytest.mark.parametrize("name", ["ToldNnx", "FixedNnx"])
def test_a_class_of_nnx_is_searched_as_the_function_does(files, blobs, tmp_path, name):
    out = tmp_path / "result.json"
    arguments = ("--space", files / "space.toml", "--trials", 1, "--no-progress", "--no-retrain")
    model, more = f"tests.test_cli:{name}", ("--fraction", 0.2, "--out", out)
    shown = run("tune", model, files / "data.npz", *arguments, *more)
    assert shown.exit_code == 0, shown.output
    written = json.loads(out.read_text())
    assert re.fullmatch(rf"{name} [0-9a-f]{{16}}", written["search"]["model"])
    expected = jdss.tune(
        FixedNnx,
        blobs,
        fraction=0.2,
        trials=1,
        search=jdss.Search(space=_arguments.space(str(files / "space.toml"))),
        retrain=False,
        progress=False,
    )
    assert written["best"]["value"] == expected.best_value


def test_a_space_on_the_command_line_reads_like_a_file():
    described = {"learning_rate": {"type": "float", "low": 0.01, "high": 0.1}}
    space = _arguments.space(described)
    assert space == {"learning_rate": FloatDistribution(0.01, 0.1)}
    assert _arguments.space(space) == space
