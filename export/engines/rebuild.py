"""Add engines to a bundle that is there, or refresh them. Needs its ONNX files, not PyTorch."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from ...runtime.bundle import checks as bundle_checks
from ...runtime.bundle.folder import BundleFolder
from ...runtime.bundle.manifest import (
    MANIFEST_FILE,
    SCHEMA_VERSION,
    Manifest,
    file_sha256,
    write_manifest,
)
from ...runtime.command.files import check_writable
from ...runtime.errors import BundleError, ExportError
from ..destination import check_own, only_export
from ..profiles import ProfileChange, with_changes
from ..progress import Progress, Report
from .condition import fault_here
from .renewal import renewal
from .update import FOLDER, EngineRequest, drop_unnamed, jobs_of, update_engines


def rebuild(
    root: Path,
    request: EngineRequest,
    changes: Sequence[ProfileChange],
    report: Report,
    progress: Progress,
) -> Manifest:
    """Build the engines of a bundle that are missing or out of date, and write its manifest.

    Engines that were not asked for and that are out of date are built again too, or dropped where
    that cannot be done here (`renewal.py`).

    Args:
        root: the bundle. Whenever this ends, it is valid: as it was, or as it becomes.
        request: what engines to build.
        changes: ranges of dimensions to replace.
        report: called with a line for each engine.
        progress: shows how a build goes on.

    Raises:
        ExportError: there is no bundle, it lacks what engines are built from, a build failed, or
            another process builds engines for it or replaces it.
        OSError: nothing can be written there.
    """
    read_manifest(root)  # what is no bundle is told so
    with only_export(root):
        return _rebuild(root, request, changes, report, progress)


def _rebuild(
    root: Path,
    request: EngineRequest,
    changes: Sequence[ProfileChange],
    report: Report,
    progress: Progress,
) -> Manifest:
    before = read_manifest(root)
    if not all(spec.files for graphs in before.tables.values() for spec in graphs.values()):
        raise ExportError(
            f"bundle {root} is slim and holds engines only: rebuild the bundle that it was made "
            "from, and make it slim again with csd-export --slim"
        )
    folders = (path.relative_to(root).as_posix() for path in (root / FOLDER).rglob("*"))
    check_own(root, (MANIFEST_FILE, FOLDER, *folders))
    manifest = with_changes(before, changes)
    check_writable(root / MANIFEST_FILE)
    wanted = jobs_of(root, manifest, request)
    fault = fault_here()
    others = renewal(root, manifest, request, wanted, fault)
    jobs = (*wanted, *others.jobs)
    for name, sha256 in {item for job in jobs for item in job.spec.files.items()}:
        _check_file(root, name, sha256)
    built = update_engines(root, manifest, jobs, report, progress, fault)
    others.tell(root, report)
    engines = (*built, *others.kept)
    manifest = dataclasses.replace(manifest, engines=engines, schema_version=SCHEMA_VERSION)
    write_manifest(root, manifest)
    drop_unnamed(root, before, manifest)
    return manifest


def read_manifest(root: Path) -> Manifest:
    """Read the manifest of a bundle whose engines may be damaged.

    Raises:
        ExportError: there is none, or it cannot be read.
    """
    if not os.path.lexists(root / MANIFEST_FILE):
        raise ExportError(
            f"no bundle at {root} (it has no {MANIFEST_FILE}): give the directory of one, or "
            "export one with --out"
        )
    try:
        return bundle_checks.read_manifest(BundleFolder.at(root))
    except BundleError as error:
        raise ExportError(str(error)) from error


def _check_file(root: Path, name: str, sha256: str) -> None:
    if not (root / name).is_file():
        raise ExportError(f"bundle {root} lacks {name}: export it again with csd-export")
    if file_sha256(root / name) != sha256:
        raise ExportError(
            f"bundle {root}: {name} was altered (its SHA-256 is not the manifest's): export it "
            "again with csd-export"
        )
