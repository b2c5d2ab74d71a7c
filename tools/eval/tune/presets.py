"""Writing a preset into a bundle."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ....runtime.bundle.bundle import Bundle
from ....runtime.bundle.folder import BundleFolder
from ....runtime.bundle.manifest import MANIFEST_FILE, SCHEMA_VERSION, write_manifest
from ....runtime.bundle.presets import MOST_PRESETS, Preset
from ....runtime.command.files import check_writable, only_writer
from ....runtime.errors import BundleError


def check_presets(bundle: Bundle, name: str) -> None:
    """Check, before the work, that a preset can be written.

    Raises:
        BundleError: the manifest is a link, or has no room.
        OSError: it cannot be written.
    """
    BundleFolder.at(bundle.path).check_own((MANIFEST_FILE,))
    presets = bundle.manifest.presets
    if name not in presets and len(presets) >= MOST_PRESETS:
        raise BundleError(
            f"bundle {bundle.path} has {MOST_PRESETS} presets already: give --name of one that is "
            "there"
        )
    check_writable(bundle.path / MANIFEST_FILE)


def write_preset(path: Path, name: str, preset: Preset) -> None:
    """Put a preset into a bundle's manifest, whole or not at all; another of its name goes.

    Raises:
        BundleError: another process writes to the bundle.
        OSError: the manifest cannot be written.
    """
    with only_writer(path) as alone:
        if not alone:
            raise BundleError(f"another process writes to {path}: wait for it, and start again")
        manifest = Bundle.open(path).manifest  # as it is now
        changed = dataclasses.replace(
            manifest, presets={**manifest.presets, name: preset}, schema_version=SCHEMA_VERSION
        )
        write_manifest(path, changed)
