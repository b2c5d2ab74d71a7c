"""Damaged bundles: each file altered, cut, emptied, replaced or unreadable."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from ..helpers import forge_hashes
from .answers import Case, as_nobody, ask, ask_process, own_folder, tree
from .place import FAST, Place, no_work, own

# Bytes that are altered with a manifest that agrees: what reads the file has to find it out.
FORGED = 12


def cases(place: Place, everything: bool) -> Iterator[Case]:
    """All damaged files."""
    for name in tree(place.bundle):
        size = (place.bundle / name).stat().st_size
        for kind, damage in _damages(size).items():
            yield Case(f"{name}: {kind}", _tried(place, name, damage))
        yield Case(f"{name}: unreadable", _tried(place, name, _close, nobody=True))
        for at in range(FORGED if everything and name != "manifest.json" else 0):
            position = size * at // FORGED
            yield Case(f"{name}: byte {position}, hash forged", _forged(place, name, position))
    yield Case("the folder: unreadable", _tried(place, ".", _close, nobody=True))


def _damages(size: int) -> dict[str, Callable[[Path], object]]:
    def altered(position: int) -> Callable[[Path], object]:
        return lambda path: _alter(path, position)

    def replaced(make: Callable[[Path], object]) -> Callable[[Path], object]:
        def damage(path: Path) -> None:
            path.unlink()
            make(path)

        return damage

    return {
        "first byte altered": altered(0),
        "a byte in its middle altered": altered(size // 2),
        "last byte altered": altered(size - 1),
        # The last byte of a text is the end of its last line.
        "cut by two bytes": lambda path: os.truncate(path, size - 2),
        "cut to half": lambda path: os.truncate(path, size // 2),
        "empty": lambda path: os.truncate(path, 0),
        "missing": replaced(lambda path: None),
        "a folder": replaced(lambda path: path.mkdir()),
        "a pipe": replaced(os.mkfifo),
        "a device": replaced(lambda path: path.symlink_to("/dev/zero")),
        "a link to itself": replaced(lambda path: path.symlink_to(path.name)),
        "a link to nothing": replaced(lambda path: path.symlink_to("gone")),
        "a link to the original": replaced(
            lambda path: path.symlink_to(path.parent.parent / "bundle" / path.name)
        ),
        "of null bytes": lambda path: path.write_bytes(bytes(size)),
    }


def _tried(
    place: Place, name: str, damage: Callable[[Path], object], nobody: bool = False
) -> Callable[[], str | None]:
    def fault() -> str | None:
        from csd.runtime.cli import main

        with ExitStack() as stack:
            bundle = stack.enter_context(place.copy())
            file = bundle / name
            if file.is_file():
                own(file)
            stack.callback(lambda: file.exists() and os.chmod(file, 0o755))
            damage(file)
            folder = stack.enter_context(own_folder(place.folder))
            stack.enter_context(no_work())
            if nobody:
                stack.enter_context(as_nobody())
            answer = ask(main, [bundle, "--labels=1", "--quiet", *FAST])
            return answer.fault((2,)) or _left(folder)

    return fault


def _forged(place: Place, name: str, position: int) -> Callable[[], str | None]:
    def fault() -> str | None:
        with place.copy() as bundle, own_folder(place.folder) as folder:
            own(bundle / name)
            _alter(bundle / name, position)
            forge_hashes(bundle)
            argv = [bundle, "--labels=1", "--quiet", *FAST]
            answer = ask_process("csd.runtime.entry", argv, folder)
            return answer.fault((0, 2)) or (_left(folder) if answer.code else None)

    return fault


def _left(folder: Path) -> str | None:
    return f"left behind: {tree(folder)}" if tree(folder) else None


def _alter(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x5A
    path.write_bytes(content)


def _close(path: Path) -> None:
    os.chmod(path, 0)
