from __future__ import annotations

import pytest

from csd.runtime.command.text import listed, plain


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Weights only \x1b[1mload\x1b[0m failed", "Weights only load failed"),
        ("\x1b[38;5;9mred\x1b[m\n\nand more", "red and more"),
        ("a \x1b alone, a \x07 bell, \u202e turned", r"a \x1b alone, a \x07 bell, \u202e turned"),
        ("x" * 400, "x" * 297 + "..."),
    ],
)
def test_sentences_of_libraries_are_plain(text, shown):
    assert plain(text) == shown
    assert plain(text).isprintable()


@pytest.mark.parametrize(
    ("names", "text"),
    [("a", "a"), ("ab", "a or b"), ("abc", "a, b or c"), ("abcd", "a, b, c or d")],
)
def test_names_are_listed_as_in_a_sentence(names, text):
    assert listed([*names], "or") == text
    assert listed(names) == text.replace("or", "and")
