"""What a run cost and what it found: ledgers, energy, result files, tables and figures.

CodeCarbon and Matplotlib are optional, and imported only when energy is measured or a figure is
drawn.
"""

from jdss.reporting.energy import Energy, EnergyMeter
from jdss.reporting.figures import accuracy_against_time, speedups
from jdss.reporting.results import REQUIRED_KEYS, environment, read_results, write_result
from jdss.reporting.summary import Estimate, Study, Summary, summarize
from jdss.reporting.tables import comparison_table, ledger_table, to_markdown, to_text

__all__ = [
    "REQUIRED_KEYS",
    "Energy",
    "EnergyMeter",
    "Estimate",
    "Study",
    "Summary",
    "accuracy_against_time",
    "comparison_table",
    "environment",
    "ledger_table",
    "read_results",
    "speedups",
    "summarize",
    "to_markdown",
    "to_text",
    "write_result",
]
