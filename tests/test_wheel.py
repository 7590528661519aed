"""The wheel is complete: it is built, looked into, and tried where nothing else is installed."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

pytestmark = pytest.mark.slow


def run(*command, cwd):
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("build", reason="building a wheel needs `pip install build`")
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(n for n in names if n.endswith("/METADATA"))).decode()
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "jdss").rglob("*.py*")}
    sources = {name for name in sources if "__pycache__" not in name}
    sources |= {"jdss/py.typed", "jdss/templates/report.html"}
    assert {"jdss/py.typed", "jdss/__init__.pyi"} <= names
    assert {name for name in names if ".dist-info/" not in name} == sources
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert "# jdss" in metadata, "the README is the long description"


def test_the_wheel_works_in_an_empty_environment(wheel, tmp_path):
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    scripts = tmp_path / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
    run(scripts / "pip", "install", "--quiet", f"{wheel}[experiments]", cwd=tmp_path)
    run(scripts / "pip", "check", cwd=tmp_path)

    where = run(scripts / "python", "-c", "import jdss; print(jdss.__file__)", cwd=tmp_path)
    assert str(tmp_path) in where, "the checkout was imported, and not the wheel"

    blocks = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    program = tmp_path / "readme.py"
    program.write_text("\n".join(blocks), encoding="utf-8")
    output = run(scripts / "python", program, cwd=tmp_path)
    assert "learning_rate" in output
    assert (tmp_path / "digits.db").exists()

    assert "tune" in run(scripts / "jdss", "--help", cwd=tmp_path)
    report = ("report", "sqlite:///digits.db", "--study", "digits", "--out", "page.html")
    run(scripts / "jdss", *report, cwd=tmp_path)
    assert "digits" in (tmp_path / "page.html").read_text(encoding="utf-8")
