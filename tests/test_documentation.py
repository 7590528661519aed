"""The documentation says what is so: its Python runs, and its command lines are understood.

A page's Python blocks run in order, in one namespace, in an empty directory. A block that cannot
run here (a GPU, a server, data that is not there) stands behind `<!-- skip: next "the reason" -->`.
What a block needs and a reader does not, is in `<!-- invisible-code-block: python … -->`.
"""

import functools
import importlib.util
import inspect
import re
import shlex
import sys
import threading
from contextlib import suppress
from pathlib import Path
from unittest import SkipTest

import jax
import pytest
from sybil.document import Document
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

import jdss
from jdss import cli, parallel

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SLOW = {
    "docs/search.md",
    "docs/choosing.md",
    "docs/ledger.md",
    "docs/own_data.md",
    "docs/own_model.md",
    "docs/own_space.md",
    "docs/tutorial.md",
}
"""Pages that are run with the slow tests, and by `.ci/run`; the others take about a minute."""


def name_of(page):
    return str(page.relative_to(ROOT))


def blocks_of(page, language):
    """(line, code) for each fenced block of a language."""
    text = page.read_text(encoding="utf-8")
    return [
        (text.count("\n", 0, match.start()) + 1, match[1])
        for match in re.finditer(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    ]


PYTHON_PAGES = [
    pytest.param(page, marks=[pytest.mark.slow] if name_of(page) in SLOW else [], id=name_of(page))
    for page in PAGES
    if blocks_of(page, "python")
]


@pytest.mark.parametrize("page", PYTHON_PAGES)
def test_the_python_blocks_of_a_page_run_one_after_the_other(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    document = Document.parse(str(page), PythonCodeBlockParser(), SkipParser())
    for example in document.examples():
        with suppress(SkipTest):
            example.evaluate()
    if page.name == "README.md":
        assert document.namespace["result"].retraining.test_accuracy > 0.9
        assert len(document.namespace["subset"].indices) == 20
    if page.name == "tutorial.md":
        assert document.namespace["result"].retraining.test_accuracy > 0.9
        assert "waves" in Path("waves.html").read_text(encoding="utf-8")
    assert jax.config.jax_enable_x64 is False, "a page changed a setting of the process"


def test_how_many_blocks_are_not_run():
    skipped = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(r"<!--+\s*skip: (.*?)-->", text):
            reason = re.search(r'"(.+)"', match[1])
            assert reason, f"{name_of(page)}: '{match[0]}' gives no reason"
            skipped.append(f"{name_of(page)} ({reason[1]})")
    if skipped:
        pytest.skip(f"{len(skipped)} blocks of the documentation are not run: {'; '.join(skipped)}")


def test_every_part_that_a_page_includes_is_there():
    included = 0
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name, heading in re.findall(r"<!-- include (\S+)(?: ([^>]+?))? -->", text):
            lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
            assert not heading or heading in lines, f"{name_of(page)}: {name} has no {heading!r}"
            included += 1
    assert included


def commands_in(script):
    """The words of each simple command of a shell script, without settings before it."""
    for line in script.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        command = []
        for word in [*words, "&&"]:
            if word in ("&&", "|", ";"):
                while command and re.fullmatch(r"\w+=.*", command[0]):
                    command.pop(0)
                if command:
                    yield command
                command = []
            else:
                command.append(word)


SCRIPTS = [(page, *block) for page in PAGES for block in blocks_of(page, "sh")]


@pytest.mark.parametrize(
    ("page", "line", "script"),
    SCRIPTS,
    ids=[f"{name_of(page)}:{line}" for page, line, _ in SCRIPTS],
)
def test_the_command_lines_of_a_page_are_understood(page, line, script, monkeypatch):
    for program, *arguments in commands_in(script):
        if program == "jdss":
            assert understood(arguments, monkeypatch), f"{name_of(page)}:{line}: {arguments}"
        elif "-m" in arguments and Path(program).name.startswith("python"):
            module = arguments[arguments.index("-m") + 1]
            assert importlib.util.find_spec(module) or module == "build", f"no module {module}"


def understood(arguments, monkeypatch):
    """Whether `jdss` reads its arguments, and makes its settings of them; no command is run."""
    run = []

    def read_only(command):
        return functools.wraps(command)(lambda *given, **named: run.append(command))

    commands = {name: read_only(command) for name, command in cli.COMMANDS.items()}
    monkeypatch.setattr(cli, "COMMANDS", commands)
    with suppress(SystemExit):
        cli.main(arguments)
    monkeypatch.undo()
    return bool(run)


def test_the_parser_of_command_lines_would_notice_what_is_wrong(monkeypatch, capsys):
    assert understood(["tune", "lenet", "digits", "--trials", "3"], monkeypatch)
    assert not understood(["tune", "lenet", "digits", "--trails", "3"], monkeypatch)
    assert not understood(["tune", "lenet", "digits", "--method", "grad_mach"], monkeypatch)
    assert not understood(["tuna", "lenet", "digits"], monkeypatch)


def test_every_public_name_is_in_the_reference():
    pages = (ROOT / "docs" / "reference").glob("*.md")
    shown = {
        name for page in pages for name in re.findall(r"^::: jdss\.(\S+)", page.read_text(), re.M)
    }
    modules = ("data", "models")
    public = [name for name in jdss.__all__ if name not in modules]
    for module in modules:
        public += [f"{module}.{name}" for name in getattr(jdss, module).__all__]
    # What is public in two places is shown at the shorter one.
    assert not [n for n in public if n not in shown and n.rpartition(".")[2] not in shown]


def test_the_page_of_the_search_names_every_argument_and_every_setting():
    text = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")
    calls = (jdss.tune, jdss.objective, jdss.select)
    settings = (jdss.Selection, jdss.Task, jdss.Search, jdss.Workers)
    names = {name for made in (*calls, *settings) for name in inspect.signature(made).parameters}
    assert not [name for name in sorted(names) if not re.search(rf"`[^`\n]*\b{name}\b", text)]


def test_the_walk_of_a_trial_is_that_of_the_code(blobs, perceptron):
    """Every file of docs/architecture.md is entered where it says, from one that came before."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    row = r"^\| \d+ \| \[`(\S+)`\]\(\.\./jdss/(\S+)\) \| `(\w+)` \|"
    walk = re.findall(row, text, re.MULTILINE)
    files = [file for file, _, _ in walk]
    assert 20 <= len(set(files)) == len(walk) <= 25
    assert all(file == link for file, link, _ in walk)
    entered = set()
    parallel.forget_compiled()  # what another test has traced would not be entered again

    def note(frame, event, _):
        if event == "call":
            entered.add((frame.f_code.co_filename, frame.f_code.co_name))

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        space = jdss.default_space(epochs=(4, 4), batch_sizes=(32,))
        jdss.tune(
            perceptron,
            blobs,
            fraction=0.2,
            trials=1,
            search=jdss.Search(space=space, pruner="asha"),
            progress=False,
        )
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    assert not [step for step in walk if (str(ROOT / "jdss" / step[0]), step[2]) not in entered]
    for place, file in enumerate(files[1:], 1):
        module = f"jdss.{file.removesuffix('.py').replace('/', '.')}"
        before = [(ROOT / "jdss" / earlier).read_text("utf-8") for earlier in files[:place]]
        assert any(f"from {module} import" in code for code in before), f"no way to {file}"


def test_there_is_one_address_of_the_repository():
    """Badges, the site and the package's metadata agree, before it is known and after."""
    places = [*PAGES, ROOT / "pyproject.toml", ROOT / "mkdocs.yml", ROOT / "CITATION.cff"]
    places += [*(ROOT / "notebooks").glob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")]
    found = {
        owner
        for place in places
        for owner in re.findall(r"github(?:\.com)?/([\w-]+)/jdss\b", place.read_text("utf-8"))
    }
    assert len(found) == 1, f"the repository has several owners: {found}"
