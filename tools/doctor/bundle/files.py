"""The files of a bundle: there, as long as they must be, with the hashes of the manifest."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from ....runtime.bundle.bundle import file_check
from ....runtime.bundle.checks import check_graphs, read_manifest
from ....runtime.bundle.folder import BundleFolder
from ....runtime.bundle.manifest import Manifest
from ....runtime.bundle.verification import FileCheck
from ....runtime.errors import BundleError
from ..check import NOTE, OK, PROBLEM, Check, split_message

AREA = "bundle"
# Called with a file's name, the bytes that are hashed, and those of all.
OnFile = Callable[[str, int, int], None]
Progress = Callable[[], AbstractContextManager[OnFile]]


@dataclass(frozen=True)
class Found:
    """What was found in a bundle's folder.

    Attributes:
        checks: of its files.
        manifest: None where it cannot be read.
        sizes: bytes of its files by name, of those that are there.
    """

    checks: list[Check]
    manifest: Manifest | None
    sizes: dict[str, int]

    @property
    def sound(self) -> bool:
        """Whether there is no problem."""
        return not any(check.state == PROBLEM for check in self.checks)


def look_at(path: Path, progress: Progress | None = None) -> Found:
    """Compare every file of a bundle with its manifest.

    Args:
        path: the folder.
        progress: shows how far it is, where somebody looks on.
    """
    folder = BundleFolder.at(path)
    try:
        manifest = read_manifest(folder)
    except BundleError as error:
        return Found([_problem("manifest", error)], None, {})
    finding = f"{manifest.name}, schema {manifest.schema_version}"
    checks = [Check(AREA, "manifest", OK, finding), *_parity(manifest)]
    check = file_check(folder, manifest, "always")
    sizes, broken = _hashed(folder, check, progress or _unseen)
    checks += broken
    if not broken:
        finding = f"{len(sizes)}, {sum(sizes.values()) / 1e6:,.1f} MB, with the manifest's hashes"
        checks.append(Check(AREA, "files", OK, finding))
        try:
            check_graphs(folder, manifest, check)
        except BundleError as error:
            checks.append(_problem("graphs", error))
    return Found(checks, manifest, sizes)


def shown_progress() -> Progress | None:
    """A bar on stderr, where that is a terminal and there is what draws it."""
    if not sys.stderr.isatty():
        return None
    from ....export.progress import shown_progress as shown
    from ....runtime.command.parser import make_console

    return lambda: shown(make_console(sys.stderr))("hashing")


def _hashed(
    folder: BundleFolder, check: FileCheck, progress: Progress
) -> tuple[dict[str, int], list[Check]]:
    """Compare all files; returns sizes of those that are there, and what is wrong with others."""
    sizes: dict[str, int] = {}
    broken: list[Check] = []
    for name in check.hashes:
        with contextlib.suppress(BundleError, OSError):  # told below
            if (path := folder.file(name)) is not None:
                sizes[name] = path.stat().st_size
    total, done = sum(sizes.values()), 0
    with progress() as step:
        for name in check.hashes:
            step("files", done, total)
            try:
                check([name])
            except BundleError as error:
                broken.append(_problem(name, error))
            done += sizes.get(name, 0)
    return sizes, broken


def _parity(manifest: Manifest) -> list[Check]:
    failed = [row.graph for row in manifest.parity if not row.passed]
    if not failed:
        return []
    return [Check(
        AREA, "parity", NOTE, f"failed at export: {', '.join(failed)}",
        "these graphs do not compute what PyTorch did", "export the bundle again with csd-export",
    )]  # fmt: skip


def _problem(name: str, error: BundleError) -> Check:
    reason, remedy = split_message(str(error))
    return Check(AREA, name, PROBLEM, "not as it must be", reason, remedy)


@contextlib.contextmanager
def _unseen() -> Generator[OnFile]:
    yield lambda name, done, total: None
