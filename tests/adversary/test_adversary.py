"""The quick part of `python -m tests.adversary`: everything that is tried is answered."""

from __future__ import annotations

import pytest

from .__main__ import CATEGORIES, Count, table, try_category
from .answers import Answer
from .place import Place


@pytest.fixture(scope="module")
def place(tiny_bundle, tmp_path_factory) -> Place:
    folder = tmp_path_factory.mktemp("place")
    for parent in (folder, *folder.parents[:3]):  # somebody without rights comes here too
        if parent.owner() == folder.owner() and parent.name:
            parent.chmod(parent.stat().st_mode | 0o111)
    return Place.at(folder, tiny_bundle)


@pytest.mark.parametrize("category", CATEGORIES)
def test_everything_is_answered(category, place):
    count = try_category(category, place, everything=False)
    print(table({category: count}))
    assert count.faults == {}
    assert count.answered > 0


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (Answer(0, b"", ""), None),
        (Answer(0, b"", "Traceback (most recent call last)"), "a traceback"),
        (Answer(2, b"", "csd: error: no: give more\n"), None),
        (Answer(2, b"", "csd: error: no\nat all\n"), "not one line"),
        (Answer(2, b"", ""), "not one line"),
        (Answer(2, b"", "csd: error: no"), "not one line"),
        (Answer(2, b"", "csd: error: \x1b[31mno\n"), "not printable"),
        (Answer(2, b"", f"csd: error: {'x' * 400}\n"), "characters"),
        (Answer(2, b"", "no\n"), "names no command"),
        (Answer(1, b"", "csd: error: unforeseen\n"), "answered with 1"),
        (Answer("ValueError()", b"", ""), "answered with ValueError"),
    ],
)
def test_what_counts_as_answered(answer, fault):
    found = answer.fault()
    assert found is None if fault is None else fault in found


def test_counts_are_summed():
    counts = {"a": Count(3, 2, {"no root": 1}, 1.0, {"x": "wrong"}), "b": Count(1, 1)}
    lines = table(counts).splitlines()
    assert "2 of      3 answered" in lines[0]
    assert "1 skipped: no root" in lines[0]
    assert "3 of      4 answered" in lines[2]
