"""The signature of a bundle: Ed25519 (RFC 8032) over the bytes of its manifest.

The manifest holds the SHA-256 of every other file that is loaded, so its signature is one of all of
them. It lies beside the manifest as 64 raw bytes, so that other tools read it too:

    openssl pkeyutl -verify -pubin -inkey key.pub -rawin -in manifest.json -sigfile manifest.sig
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..command.frame import os_error_text
from ..errors import BundleError, OptionError
from ..libraries.imports import import_library, need
from .folder import SIGNATURE_FILE, BundleFolder

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

_BYTES = 64
_MOST_KEY_BYTES = 1 << 16
_MAKE = "openssl pkey -in KEY -pubout -out key.pub, or ssh-keygen -y -f KEY > key.pub"


def read_public_key(path: Path) -> Ed25519PublicKey:
    """Read a public key, PEM or a line as of `id_ed25519.pub`.

    Raises:
        CsdError: the package `cryptography` is missing or broken.
        OptionError: the file cannot be read or holds no public key for Ed25519.
    """
    need("--require-signature", "cryptography")
    serialization = import_library("cryptography.hazmat.primitives.serialization")
    content = read_key_file("require-signature", path)
    load = (
        serialization.load_ssh_public_key
        if content.startswith((b"ssh-", b"ecdsa-", b"sk-"))
        else serialization.load_pem_public_key
    )
    try:
        key: Any = load(content)
    except Exception as error:  # the library raises several kinds, as for keys it does not know
        raise OptionError(
            f"require-signature is {path}, which holds no public key: make it with {_MAKE}"
        ) from error
    ed25519 = import_library("cryptography.hazmat.primitives.asymmetric.ed25519")
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise OptionError(
            f"require-signature is {path}, a key of another kind: bundles are signed with Ed25519 "
            "keys, as openssl genpkey -algorithm ed25519 -out KEY makes them"
        )
    return key


def read_key_file(option: str, path: Path) -> bytes:
    """Read a small file.

    Raises:
        OptionError: it cannot be read, or is too large for a key.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(_MOST_KEY_BYTES + 1)
    except OSError as error:
        raise OptionError(f"{option}: {os_error_text(error)}") from error
    if len(content) > _MOST_KEY_BYTES:
        raise OptionError(f"{option} is {path}, which is too large for a key")
    return content


def check_signature(folder: BundleFolder, manifest: bytes, key: Ed25519PublicKey) -> None:
    """Check the signature of a bundle's manifest before anything of it is believed.

    Args:
        folder: of the bundle.
        manifest: content of `manifest.json`.
        key: of who must have signed it.

    Raises:
        BundleError: the bundle is not signed, or not with that key, or was changed since.
    """
    path = folder.file(SIGNATURE_FILE)
    if path is None:
        raise BundleError(
            f"bundle {folder.path} is not signed: csd-export --seal {folder.path} --sign KEY"
        )
    try:
        with path.open("rb") as stream:
            signature = stream.read(_BYTES + 1)
    except OSError as error:
        raise BundleError(f"bundle {folder.path}: {os_error_text(error)}") from error
    if len(signature) == _BYTES and _verifies(key, signature, manifest):
        return
    raise BundleError(
        f"bundle {folder.path}: its signature is of another key, or its manifest was changed after "
        f"it was signed: if you know the change, csd-export --seal {folder.path} --sign KEY"
    )


def signature_warning(bundle: Path) -> str | None:
    """What to tell after a bundle's manifest was changed; None where it is not signed."""
    if not (bundle / SIGNATURE_FILE).exists():
        return None
    return (
        f"its signature does not hold any more: csd-export --seal {bundle} --sign KEY signs the "
        "bundle as it is now"
    )


def _verifies(key: Ed25519PublicKey, signature: bytes, content: bytes) -> bool:
    invalid = import_library("cryptography.exceptions").InvalidSignature
    try:
        key.verify(signature, content)
    except invalid:
        return False
    return True
