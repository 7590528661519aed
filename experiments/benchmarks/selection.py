"""Benchmarks of the selection core: `python -m experiments.benchmarks.selection`.

Sections run on their own with `--only`; each is written to the result file as it ends, with where
it ran, and replaces its earlier self there. `--report` makes the tables anew from the file alone.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.benchmarks import peers, report
from experiments.benchmarks.sections import SCALES, SECTIONS
from jdss import reporting

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results" / "benchmarks" / "selection.json"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="NAME", help="sections")
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="the result file; default: the committed one")
    parser.add_argument("--report", action="store_true", help="only make the tables anew")
    arguments = parser.parse_args(argv)
    committed = arguments.out is None and arguments.scale == "full"
    out = arguments.out or (RESULTS if committed else Path("runs/benchmarks-tiny/selection.json"))
    readme = HERE / "README.md" if committed else out.with_suffix(".md")

    console = Console()
    results: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"sections": {}}
    names = [] if arguments.report else arguments.only or list(SECTIONS)
    for name in names:
        console.print(f"{name} …")
        load = _load_average()
        section = SECTIONS[name](SCALES[arguments.scale], arguments.seed)
        for peer, reason in section["missing"].items():
            console.print(f"  without {peer}: {reason}", markup=False)
        where = reporting.environment()
        where["versions"] |= peers.versions()
        results["sections"][name] = {
            **where,
            "seeds": [arguments.seed],
            "scale": arguments.scale,
            "load_average": load + _load_average(),
            **section,
        }
        _write(out, json.dumps(results, indent=2, ensure_ascii=False, default=float) + "\n")
        console.print(report.rich_table(name, section))
    _write(readme, report.markdown(results, notes=(HERE / "notes.md").read_text()))


def _load_average() -> list[float]:
    """How many processes wanted to run in the last minute; nothing where unknown (Windows)."""
    return [os.getloadavg()[0]] if hasattr(os, "getloadavg") else []


def _write(path: Path, text: str) -> None:
    """The whole file or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


if __name__ == "__main__":
    main()
