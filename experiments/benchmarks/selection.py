"""Benchmarks of the selection core: `python -m experiments.benchmarks.selection`.

Sections run on their own with `--only`; each is written to the result file as it ends, with where
it ran, and replaces its earlier self there. `experiments.benchmarks.report` makes the tables.
"""

import argparse
import json
from pathlib import Path

from experiments.benchmarks import peers, report, sections
from experiments.benchmarks.measuring import load_average, write_json
from experiments.benchmarks.sections import SCALES
from experiments.results import environment

SECTIONS = {
    "facility_location": sections.facility_location,
    "pursuit": sections.pursuit,
    "round": sections.round_,
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="NAME", help="sections")
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="the result file; default: the committed one")
    arguments = parser.parse_args(argv)
    tiny = Path("runs/benchmarks-tiny/selection.json")
    out = arguments.out or (report.OUT / "selection.json" if arguments.scale == "full" else tiny)
    results = json.loads(out.read_text()) if out.exists() else {"sections": {}}
    for name in arguments.only or list(SECTIONS):
        load = load_average()
        section = SECTIONS[name](SCALES[arguments.scale], arguments.seed)
        for peer, reason in section["missing"].items():
            print(f"without {peer}: {reason}")
        where = environment()
        where["versions"] |= peers.versions()
        results["sections"][name] = {
            **where,
            "seeds": [arguments.seed],
            "scale": arguments.scale,
            "load_average": load + load_average(),
            **section,
        }
        write_json(out, results)
        print(f"## {name}\n")
        print("\n".join(table.markdown() for table in report.section_tables(section)))


if __name__ == "__main__":
    main()
