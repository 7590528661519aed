"""Writes the tables of the README anew from the committed result files.

`python -m experiments.update_readme`. A table stands between `<!-- results: DIRECTORY -->` and
`<!-- end of results -->`, DIRECTORY being one below `experiments/results`.
"""

import re
from pathlib import Path

from jdss import reporting

README = Path(__file__).parent.parent / "README.md"
RESULTS = Path(__file__).parent / "results"
_TABLE = re.compile(r"(<!-- results: (\S+) -->\n).*?(<!-- end of results -->)", re.DOTALL)


def tables_in(text: str) -> list[str]:
    """The directories whose results a text shows."""
    return [match[2] for match in _TABLE.finditer(text)]


def updated(text: str) -> str:
    """The text with every table made anew from its result files."""

    def table(match: re.Match[str]) -> str:
        results = reporting.read_results(RESULTS / match[2])
        markdown = reporting.to_markdown(reporting.comparison_table(results, by_column=True))
        return f"{match[1]}{markdown.strip()}\n{match[3]}"

    return _TABLE.sub(table, text)


if __name__ == "__main__":
    README.write_text(updated(README.read_text()))
