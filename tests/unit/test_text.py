"""Text that is safe to print on a terminal."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.utils.text import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2Jgone", r"\x1b[2Jgone"),
        ("bell\a", r"bell\x07"),
        ("over\rwritten", r"over\rwritten"),
        ("\x9b31m", r"\x9b31m"),
        ("abc\u202egpj.exe", r"abc\u202egpj.exe"),
        ("half \ud800", r"half \ud800"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("Käfer 🐞 日本", "Käfer 🐞 日本"),
    ],
)
def test_control_characters_are_escaped(text, shown):
    assert printable(text) == shown


@given(st.text(st.characters()))
def test_printed_text_has_no_control_character(text):
    shown = printable(text)
    assert {unicodedata.category(char) for char in shown if char not in "\n\t"}.isdisjoint({"Cc", "Cf", "Cs"})
    shown.encode("utf-8")
    assert printable(shown) == shown
