"""Markdown of the reproduction."""

from hpo.paper.table import Row, render

ROW = Row("toy | set", "0.5", "0.6", "`toy`, 1 trial in 2 s", "+0.1")


def test_table_has_heading_and_escaped_rows():
    lines = render([ROW], quick=False, workers=3, seconds=75).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert table == [
        "| experiment | the report | ours | how it was run | difference, and the likely reason |",
        "| --- | --- | --- | --- | --- |",
        "| toy \\| set | 0.5 | 0.6 | `toy`, 1 trial in 2 s | +0.1 |",
    ]


def test_document_has_command_and_conditions():
    text = render([ROW], quick=True, workers=3, seconds=75)
    assert "`python -m hpo.reproduce --quick`" in text
    assert "3 workers" in text
    assert "This run took 1:15." in text
