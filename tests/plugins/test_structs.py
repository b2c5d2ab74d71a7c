from __future__ import annotations

import re

import pytest

from csd.plugins import structs

from ..helpers import ROOT

MIRRORS = {
    "host.h": ("DensityPointers", "StepPointers"),
    "head.h": ("RowsStruct", "ChainsStruct", "SpeculationStruct", "IterationStruct"),
    "rounds.cuh": ("RoundsStruct",),
}
CASES = [(header, name) for header, names in MIRRORS.items() for name in names]
SIZES = {"int64_t": 8, "int32_t": 4, "float": 4}


def declared(header: str, struct: str) -> list[tuple[str, int | str]]:
    """Name and size of each member of a C structure, or its type where that is a structure."""
    text = (ROOT / "plugins" / "kernels" / header).read_text(encoding="utf-8")
    body = re.search(rf"struct {struct} {{(.*?)\n}};", text, re.DOTALL)
    assert body, f"{header} declares no {struct}"
    members: list[tuple[str, int | str]] = []
    for line in re.sub(r"//[^\n]*", "", body[1]).split(";"):
        if not (words := line.replace("const", "").split()):
            continue
        kind, names = words[0], " ".join(words[1:]).split(",")
        for name in names:
            size = 8 if "*" in name + kind else SIZES.get(kind.strip("*"), kind)
            members.append((name.replace("*", "").strip(), size))
    return members


@pytest.mark.parametrize(("header", "name"), CASES)
def test_a_mirror_has_the_members_of_its_header_in_their_order(header, name):
    mirror = getattr(structs, name)
    c_name = re.match(r"`(\w+)`", mirror.__doc__)[1]
    wanted = declared(header, c_name)
    assert [field[0] for field in mirror._fields_] == [member for member, _ in wanted]
    for (_, kind, *_), (member, size) in zip(mirror._fields_, wanted, strict=True):
        if isinstance(size, int):
            assert getattr(kind, "_length_", None) is None
            assert structs.ctypes.sizeof(kind) == size, member
        else:
            assert kind.__doc__.startswith(f"`{size}`"), member


def test_every_mirror_is_held_to_a_header():
    found = {
        name
        for name, value in vars(structs).items()
        if isinstance(value, type) and issubclass(value, structs.ctypes.Structure)
    }
    assert found == {name for _, name in CASES}
