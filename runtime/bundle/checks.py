"""Checks of a bundle's files against its manifest."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ..command.frame import os_error_text
from ..command.text import plain, shown
from ..errors import BundleError
from .folder import CODE_FILES, KERNELS_FOLDER, KERNELS_LIST, BundleFolder
from .manifest import MANIFEST_FILE, GraphSpec, Manifest, TensorSpec
from .manifest_checks import MOST_BYTES
from .onnx_file import Dimension, OnnxFile, read_onnx
from .schema import FieldError, relative_name
from .signature import check_signature

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

T = TypeVar("T")
_AGAIN = "export the bundle again"


def read_manifest(folder: BundleFolder, signer: Ed25519PublicKey | None = None) -> Manifest:
    """Read the manifest of a folder, and check where the files lie that it names.

    Args:
        folder: of the bundle.
        signer: public key of who must have signed the manifest; None asks for no signature.

    Raises:
        BundleError: there is none, it is not as it must be or not signed, or a file lies outside.
    """
    path = folder.file(MANIFEST_FILE)
    if path is None:
        raise BundleError(
            f"no bundle at {folder.path} (it has no {MANIFEST_FILE}): write one with "
            f"csd-export --zoo fashion-mnist --out {folder.path}"
        )
    try:
        if path.stat().st_size > MOST_BYTES:
            raise BundleError(
                f"cannot read bundle {folder.path}: its {MANIFEST_FILE} has over "
                f"{MOST_BYTES >> 20} MiB: {_AGAIN}"
            )
        content = path.read_bytes()
    except OSError as error:
        raise BundleError(f"bundle {folder.path}: {os_error_text(error)}") from error
    if signer is not None:
        check_signature(folder, content, signer)
    try:
        manifest = Manifest.from_json(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BundleError(
            f"cannot read bundle {folder.path}: its {MANIFEST_FILE} is not text: {_AGAIN}"
        ) from error
    except BundleError as error:
        raise BundleError(f"cannot read bundle {folder.path}: {error}") from error
    folder.check([*manifest.file_hashes, *_unnamed(folder)])
    return manifest


def _unnamed(folder: BundleFolder) -> Iterator[str]:
    """Names of files that are built where the bundle runs, and taken into its manifest later.

    These are the library of plugins and the kernels, which are named in a list of their own.
    """
    yield from CODE_FILES
    built = folder.file(KERNELS_LIST)
    if built is None:
        return
    try:
        cubins = json.loads(built.read_text(encoding="utf-8"))["cubins"]
        files = [cubin["file"] for cubin in cubins]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return  # what launches kernels says what is wrong with them
    for file in files:
        try:
            yield f"{KERNELS_FOLDER}/{relative_name(file, f'{KERNELS_LIST}: file')}"
        except FieldError as error:
            raise BundleError(
                f"bundle {folder.path}: {plain(str(error))}: remove its folder "
                f"{KERNELS_FOLDER} and build them again"
            ) from error


def check_graphs(
    folder: BundleFolder, manifest: Manifest, check: Callable[[Iterable[str]], None]
) -> None:
    """Check that ONNX files are what the manifest says, and take weights from files it names only.

    Args:
        folder: of the bundle.
        manifest: what is in it.
        check: compares files with their hashes: what is wrong may be that one was altered.

    Raises:
        BundleError: names the file.
    """
    seen: dict[str, OnnxFile] = {}
    for precision, graphs in manifest.tables.items():
        for name, spec in graphs.items():
            if not spec.files:
                continue
            try:
                if spec.onnx_file not in seen:
                    seen[spec.onnx_file] = read_graph_file(folder, spec.onnx_file, read_onnx)
                _check_graph(folder, name, spec, seen[spec.onnx_file], dtypes=precision == "fp32")
            except BundleError:
                check(spec.files)
                raise


def _check_graph(
    folder: BundleFolder, name: str, spec: GraphSpec, found: OnnxFile, *, dtypes: bool
) -> None:
    label = f"bundle {folder.path}: {spec.onnx_file}, graph {name}"
    _check_weights(folder, label, spec, found)
    _check_tensors(label, spec.inputs, found.inputs, dtypes=dtypes)
    _check_tensors(label, spec.outputs, found.outputs, dtypes=dtypes)


def read_graph_file(folder: BundleFolder, name: str, read: Callable[[Path], T]) -> T:
    """Read an ONNX file of a bundle.

    Args:
        folder: of the bundle.
        name: of the file.
        read: reads it; a `ValueError` says that it is no ONNX file.

    Raises:
        BundleError: it is missing, cannot be read, or is no ONNX file.
    """
    path = folder.file(name)
    if path is None:
        raise BundleError(
            f"bundle {folder.path} lacks {plain(name, 160)}: export it again with csd-export"
        )
    try:
        return read(path)
    except OSError as error:
        raise BundleError(f"bundle {folder.path}: {os_error_text(error)}") from error
    except ValueError as error:
        raise BundleError(
            f"bundle {folder.path}: {name} is not an ONNX file ({plain(str(error))}): {_AGAIN}"
        ) from error


def _check_weights(folder: BundleFolder, label: str, spec: GraphSpec, found: OnnxFile) -> None:
    """Check where weights beside a graph lie, and that their file is long enough for them."""
    sizes: dict[str, int] = {}
    beside = posixpath.dirname(spec.onnx_file)
    others = set(list(spec.files)[1:])
    for tensor in found.external:
        if posixpath.join(beside, tensor.location) not in others:
            raise BundleError(
                f"{label}: takes weights from {shown(tensor.location)}, which the manifest does "
                f"not name: {_AGAIN}"
            )
        if tensor.offset < 0 or (tensor.length or 0) < 0:
            raise BundleError(f"{label}: takes weights from before a file's start: {_AGAIN}")
        if tensor.location not in sizes:
            path = folder.file(posixpath.join(beside, tensor.location))
            sizes[tensor.location] = 0 if path is None else path.stat().st_size
        if tensor.offset + (tensor.length or 0) > sizes[tensor.location]:
            raise BundleError(
                f"{label}: {tensor.location} ends before the weights {plain(tensor.name, 80)}: it "
                "was cut off; fetch the bundle again, or export it again with csd-export"
            )


def _check_tensors(
    label: str,
    tensors: tuple[TensorSpec, ...],
    found: dict[str, tuple[str, tuple[Dimension, ...]]],
    *,
    dtypes: bool,
) -> None:
    for tensor in tensors:
        dtype, shape = found.get(tensor.name, ("", ()))
        fits = len(shape) == len(tensor.shape) and all(
            have == want if isinstance(want, int) else not isinstance(have, int)
            for have, want in zip(shape, tensor.shape, strict=True)
        )
        if not fits or (dtypes and dtype != tensor.dtype):
            raise BundleError(
                f"{label}: {tensor.name} is {plain(dtype) or 'not there'} {shown(list(shape))}, "
                f"the manifest has {tensor.dtype} {list(tensor.shape)}: {_AGAIN}"
            )
    extra = sorted(set(found) - {tensor.name for tensor in tensors})
    if extra:
        raise BundleError(f"{label}: has {shown(extra[0])}, the manifest has not: {_AGAIN}")
