"""The documentation says what is so: its Python runs, and its command lines are understood.

A page's Python blocks run in order, in one namespace, in an empty directory. A block that cannot
run here (a GPU, a server, data that is not there) stands behind `<!-- skip: next "the reason" -->`.
What a block needs and a reader does not, is in `<!-- invisible-code-block: python … -->`.
"""

import importlib.util
import re
import shlex
from contextlib import suppress
from pathlib import Path
from unittest import SkipTest

import jax
import pytest
import typer
from sybil.document import Document
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

import jdss
from jdss.cli import app

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
def test_the_command_lines_of_a_page_are_understood(page, line, script):
    group = typer.main.get_command(app)
    for program, *arguments in commands_in(script):
        if program == "jdss":
            # Parses every option, and raises for one that does not exist; nothing is run.
            context = group.make_context("jdss", [arguments[0]])
            command = group.get_command(context, arguments[0])
            assert command is not None, f"jdss has no command {arguments[0]!r}"
            command.make_context(arguments[0], arguments[1:], parent=context)
        elif "-m" in arguments and Path(program).name.startswith("python"):
            module = arguments[arguments.index("-m") + 1]
            assert importlib.util.find_spec(module) or module == "build", f"no module {module}"


def test_the_parser_of_command_lines_would_notice_an_unknown_option():
    with pytest.raises(Exception, match="No such option"):
        test_the_command_lines_of_a_page_are_understood(
            None, 0, "jdss tune lenet digits --trails 3"
        )


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
