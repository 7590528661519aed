"""What a user sees of the package: every public name is explained, and nothing loads too much."""

import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import jdss

ROOT = Path(__file__).resolve().parents[1]
MODULES = ("data", "models")


def public_names():
    names = [name for name in jdss.__all__ if name not in MODULES]
    for module in MODULES:
        names += [f"{module}.{name}" for name in getattr(jdss, module).__all__]
    return names


def resolve(name):
    thing = jdss
    for part in name.split("."):
        thing = getattr(thing, part)
    return thing


def has_example(thing):
    return bool(re.search(r">>> |```python", inspect.getdoc(thing) or ""))


@pytest.mark.parametrize("name", public_names())
def test_every_public_name_is_explained_with_an_example(name):
    thing = resolve(name)
    if not (inspect.isclass(thing) or inspect.isfunction(thing)):
        return  # a constant; its docstring stands behind it, and the reference shows it
    text = inspect.getdoc(thing)
    assert text, f"jdss.{name} has no docstring"
    is_error = inspect.isclass(thing) and issubclass(thing, Exception)
    if is_error or getattr(thing, "_is_protocol", False) or has_example(thing):
        return
    # What only a function makes may leave the example to that function.
    maker = re.search(r"Made by `jdss\.([\w.]+)`\.", text)
    assert maker, f"jdss.{name} has no example"
    assert has_example(resolve(maker[1])), f"jdss.{maker[1]}, which makes it, has no example"


@pytest.mark.parametrize("name", [n for n in public_names() if inspect.isfunction(resolve(n))])
def test_every_argument_of_a_public_function_is_explained(name):
    function = resolve(name)
    text = inspect.getdoc(function)
    parameters = inspect.signature(function).parameters
    unexplained = [p for p in parameters if not re.search(rf"\b{re.escape(p)}\b", text)]
    assert not unexplained, f"jdss.{name} says nothing of {', '.join(unexplained)}"


def test_the_stub_and_the_package_have_the_same_names():
    stub = (ROOT / "jdss" / "__init__.pyi").read_text()
    listed = re.findall(r"(\w+) as \1\b", stub)  # as type checkers know that it is public
    assert sorted(listed) == sorted(jdss.__all__) == sorted(set(listed))
    assert all(hasattr(jdss, name) for name in listed)


def test_the_version_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == jdss.__version__


def loaded_after(code):
    """The top-level names of the modules that are loaded after running code, in a new process."""
    code += "; import sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.split())


def test_importing_the_package_loads_none_of_what_it_may_not_need():
    assert not loaded_after("import jdss") & {
        "tensorflow", "tensorflow_datasets", "sklearn", "matplotlib", "torch", "pandas",
        "jax", "flax", "optuna", "orbax", "plotly", "jinja2",
    }  # fmt: skip


def test_all_public_names_together_load_nothing_optional():
    code = "import jdss; [getattr(jdss, name) for name in jdss.__all__]"
    assert not loaded_after(code) & {
        "tensorflow", "tensorflow_datasets", "sklearn", "matplotlib", "torch", "pandas",
        "plotly", "jinja2", "orbax",
    }  # fmt: skip


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        jdss.no_such_name  # noqa: B018
