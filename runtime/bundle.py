"""A bundle: the directory that `csd-export` writes and the runtime reads."""

from __future__ import annotations

import dataclasses
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .backends.engines import renewal_command
from .errors import BundleError
from .head import AffineDraft
from .manifest import MANIFEST_FILE, Manifest, file_sha256

if TYPE_CHECKING:
    from .session import Session


class Bundle:
    """A validated bundle. Get one with `Bundle.open`.

    Attributes:
        path: the directory.
        manifest: what is in it.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    def __repr__(self) -> str:
        models = " and ".join(self.manifest.models)
        return f"<Bundle {self.manifest.name} at {self.path}: {models}>"

    @classmethod
    def open(cls, path: str | Path, *, check_files: bool = True) -> Bundle:
        """Read the manifest and check every file against its hash.

        Args:
            path: the directory.
            check_files: compare the SHA-256 of each file; without it only presence is checked.

        Raises:
            BundleError: names what is wrong and the command that mends it.
        """
        path = Path(path)
        manifest_path = path / MANIFEST_FILE
        if not manifest_path.is_file():
            raise BundleError(
                f"no bundle at {path} (it has no {MANIFEST_FILE}): write one with "
                f"csd-export --zoo fashion-mnist --out {path}"
            )
        try:
            manifest = Manifest.from_json(manifest_path.read_text(encoding="utf-8"))
        except (BundleError, UnicodeDecodeError) as error:
            raise BundleError(f"cannot read bundle {path}: {error}") from error
        remedies = {e.file: renewal_command(path, e) for e in manifest.engines}
        for name, sha256 in manifest.file_hashes.items():
            remedy = remedies.get(name, "export it again with csd-export")
            if not (path / name).is_file():
                raise BundleError(f"bundle {path} lacks {name}: {remedy}")
            if check_files and file_sha256(path / name) != sha256:
                raise BundleError(
                    f"bundle {path}: {name} was altered (its SHA-256 is not the manifest's): "
                    f"{remedy}"
                )
        return cls(path, manifest)

    def head_draft(self, role: str) -> AffineDraft | None:
        """Return the fitted draft of a model's head, or None for a bundle without calibration."""
        calibration = self.manifest.calibration
        if calibration is None:
            return None
        names = [field.name for field in dataclasses.fields(AffineDraft)]
        try:
            with np.load(self.path / calibration.file) as arrays:
                return AffineDraft(**{name: arrays[f"{role}.{name}"] for name in names})
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise BundleError(
                f"bundle {self.path}: cannot read {calibration.file} ({error}): export it again "
                "with csd-export"
            ) from error

    def session(
        self,
        backend: str = "auto",
        threads: int = 2,
        *,
        precision: str | None = None,
        memory_limit: int | None = None,
        cuda_graph: bool = True,
    ) -> Session:
        """Load the graphs. Use as a context manager.

        Args:
            backend: `auto`, `onnxruntime`, `onnxruntime_cuda`, `tensorrt` or `tensorrt_rtx`.
            threads: CPU threads.
            precision: of engines: `fp16`, `bf16` or `fp32`; None takes the fastest there is.
            memory_limit: MB of device memory that engines may take, or None.
            cuda_graph: whether repeated calls of engines are recorded as CUDA graphs.

        Raises:
            BackendError: the backend is not installed or cannot run this bundle.
            OptionError: a value is out of range.
        """
        from .backends import BackendOptions
        from .session import Session

        return Session(self, BackendOptions(backend, threads, precision, memory_limit, cuda_graph))
