"""Seal a bundle: take code that was built for it into its manifest, and sign the manifest.

The library of TensorRT's plugins and the kernels are built where a bundle runs, after its export.
They are code, so the runtime loads them only where the manifest has their hashes.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from ..runtime.bundle.folder import CODE_FILES, SIGNATURE_FILE
from ..runtime.bundle.manifest import (
    MANIFEST_FILE,
    SCHEMA_VERSION,
    Manifest,
    file_sha256,
    write_manifest,
)
from ..runtime.bundle.signature import read_key_file, signature_warning
from ..runtime.command.files import check_writable, write_atomically
from ..runtime.errors import ExportError
from ..runtime.libraries.imports import import_library, need
from .destination import check_own, only_export
from .engines.rebuild import read_manifest
from .progress import Report

# What is written and what is taken in: the bundle's own files, and no links.
_WRITTEN = (MANIFEST_FILE, SIGNATURE_FILE, *CODE_FILES)


@dataclasses.dataclass(frozen=True)
class SigningKey:
    """An Ed25519 private key, and the file that it came from."""

    path: Path
    key: Any

    @classmethod
    def read(cls, path: Path) -> SigningKey:
        """Read a private key, PEM or OpenSSH.

        Raises:
            ExportError: it cannot be read, is none for Ed25519, or is protected by a passphrase.
            CsdError: the package `cryptography` is missing or broken.
        """
        need("--sign", "cryptography", kind=ExportError)
        serialization = import_library("cryptography.hazmat.primitives.serialization")
        ed25519 = import_library("cryptography.hazmat.primitives.asymmetric.ed25519")
        content = read_key_file("sign", path)
        load = (
            serialization.load_ssh_private_key
            if b"OPENSSH PRIVATE KEY" in content
            else serialization.load_pem_private_key
        )
        try:
            key = load(content, password=None)
        except TypeError as error:
            raise ExportError(
                f"sign is {path}, which is protected by a passphrase: give a copy without, as "
                "openssl pkey -in KEY -out COPY or ssh-keygen -p -f COPY make one"
            ) from error
        except Exception as error:  # the library raises several kinds
            locked = "passphrase" in str(error) or "password" in str(error).lower()
            reason = "is protected by a passphrase" if locked else "holds no private key"
            raise ExportError(
                f"sign is {path}, which {reason}: openssl genpkey -algorithm ed25519 -out KEY "
                "makes one"
            ) from error
        if not isinstance(key, ed25519.Ed25519PrivateKey):
            raise ExportError(
                f"sign is {path}, a key of another kind: openssl genpkey -algorithm ed25519 -out "
                "KEY makes one for Ed25519"
            )
        return cls(path, key)


def sign(root: Path, key: SigningKey) -> None:
    """Write the signature of a bundle beside its manifest.

    Raises:
        ExportError: it is a link.
        OSError: it cannot be written.
    """
    check_own(root, _WRITTEN)
    signature = key.key.sign((root / MANIFEST_FILE).read_bytes())
    with write_atomically(root / SIGNATURE_FILE) as stream:
        stream.write(signature)


def seal(root: Path, key: SigningKey | None, report: Report) -> Manifest:
    """Name the code that lies in a bundle in its manifest, and sign it.

    Args:
        root: the bundle; code that is named and not there any more is named no longer.
        key: to sign with, or None.
        report: called with a line for what was done.

    Raises:
        ExportError: there is no bundle, what would be written is a link, the list of kernels cannot
            be read, or another process writes to the bundle.
        OSError: nothing can be written there.
    """
    read_manifest(root)  # what is no bundle is told so
    with only_export(root):
        manifest = read_manifest(root)
        check_own(root, _WRITTEN)
        check_writable(root / MANIFEST_FILE)
        code = {name: file_sha256(root / name) for name in CODE_FILES if (root / name).is_file()}
        _check_kernels(root, code)
        if code != manifest.code:
            manifest = dataclasses.replace(manifest, code=code, schema_version=SCHEMA_VERSION)
            write_manifest(root, manifest)
            if key is None and (warning := signature_warning(root)):
                report(f"warning: {warning}")
        if key is not None:
            sign(root, key)
    named = f"code in its manifest: {', '.join(code)}" if code else "no code in it"
    report(f"{root} sealed, {named}{'' if key is None else f'; signed with {key.path}'}")
    return manifest


def _check_kernels(root: Path, code: dict[str, str]) -> None:
    """Check that the list of kernels has the hash of each, which is what makes it stand for them.

    Raises:
        ExportError: it has not, or one of them is another file.
    """
    listing = root / CODE_FILES[-1]
    if CODE_FILES[-1] not in code:
        return
    try:
        cubins = json.loads(listing.read_text(encoding="utf-8"))["cubins"]
        differ = [
            row["file"] for row in cubins
            if file_sha256(listing.with_name(row["file"])) != row["sha256"]
        ]  # fmt: skip
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ExportError(
            f"{listing} is no list of kernels that are there: {_again(root)}"
        ) from error
    if differ:
        raise ExportError(f"{listing} has another hash of {differ[0]}: {_again(root)}")


def _again(root: Path) -> str:
    folder = os.fspath(root / Path(CODE_FILES[-1]).parent)
    return f"python -m csd.plugins.build --out {folder}, or remove {folder}"
