"""Table of the reproduction in Markdown."""

from collections.abc import Iterable
from dataclasses import astuple, dataclass
from datetime import UTC, datetime

from hpo.utils.system import cores, cpu, versions
from hpo.utils.text import format_duration

# Between the lines of a cell.
LINE_BREAK = "<br>"

PACKAGES = ("hpo", "numpy", "scikit-learn", "optuna", "torch")


@dataclass(frozen=True)
class Row:
    """Row of the table.

    Attributes:
        experiment: The name and the conditions of the experiment.
        published: The figures of the report.
        ours: The figures of the reproduction.
        method: The studies, trials and time of the reproduction.
        remark: The difference between the figures, and its likely reason.
    """

    experiment: str
    published: str
    ours: str
    method: str
    remark: str = ""


_HEADING = Row("experiment", "the report", "ours", "how it was run", "difference, and the likely reason")


def render(rows: Iterable[Row], *, quick: bool, workers: int, seconds: float) -> str:
    """Return the document with the table and the conditions of its figures."""
    lines = ["# The report, reproduced", "", *_table(rows), "", *_conditions(quick, workers, seconds), ""]
    return "\n".join(lines)


def _table(rows: Iterable[Row]) -> Iterable[str]:
    lines = [_HEADING, Row(*["---"] * len(astuple(_HEADING))), *rows]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in astuple(row))} |" for row in lines]


def _conditions(quick: bool, workers: int, seconds: float) -> Iterable[str]:
    installed = ", ".join(f"{name} {number}" for name, number in versions(PACKAGES).items() if number is not None)
    command = "python -m hpo.reproduce" + " --quick" * quick
    yield f"Made with `{command}`. Every figure is of one run. Validation and test have 1,000 images each:"
    yield "one standard error of 0.55 is 0.016."
    yield ""
    yield f"On {datetime.now(UTC):%Y-%m-%d}: {cpu()}, {cores()} cores, {workers} workers; {installed}."
    yield (
        f"This run took {format_duration(seconds)}. Studies that were finished before were not trained again; their "
        "times are from their own run."
    )
