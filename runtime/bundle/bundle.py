"""A bundle: the directory that `csd-export` writes and the runtime reads."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from ..backends.engines import renewal_command
from ..command.text import plain
from ..errors import BundleError
from ..head import AffineDraft, HeadCalibration
from .calibration import read_head_draft
from .checks import check_graphs, read_manifest
from .folder import BundleFolder
from .manifest import Manifest, file_sha256

if TYPE_CHECKING:
    from ..session import Session


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
    def open(cls, path: str | Path, *, check_files: bool = True, links: bool = False) -> Bundle:
        """Read the manifest, and check every field and file of it.

        Where files lie is checked before any of them is read: inside the folder, links followed,
        or in the blobs of the model hub's cache that it is part of (`folder.py`).

        Args:
            path: the directory.
            check_files: compare the SHA-256 of each file; without it only presence is checked,
                and that graphs are what the manifest says.
            links: follow links to anywhere. They are read with your rights: only for a bundle
                whose links you know.

        Raises:
            BundleError: names what is wrong and the command that mends it.
        """
        path = Path(path)
        folder = BundleFolder.at(path, links=links)
        manifest = read_manifest(folder)
        remedies = {e.file: renewal_command(path, e) for e in manifest.engines}
        for name, sha256 in manifest.file_hashes.items():
            remedy = remedies.get(name, "export it again with csd-export")
            if (file := folder.file(name)) is None:
                raise BundleError(f"bundle {path} lacks {name}: {remedy}")
            if check_files and file_sha256(file) != sha256:
                raise BundleError(
                    f"bundle {path}: {name} was altered (its SHA-256 is not the manifest's): "
                    f"{remedy}"
                )
        check_graphs(folder, manifest)
        return cls(path, manifest)

    def head_draft(self, role: str) -> AffineDraft | None:
        """Return the fitted draft of a model's head, or None for a bundle without calibration.

        Raises:
            BundleError: it cannot be read, or its arrays do not fit the model.
        """
        calibration = self.manifest.calibration
        if calibration is None:
            return None
        config = self.manifest.models[role]
        try:
            return read_head_draft(
                self.path / calibration.file, role, config, calibration.head_steps
            )
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise BundleError(
                f"bundle {self.path}: cannot read {calibration.file} ({plain(str(error))}): export "
                "it again with csd-export"
            ) from error

    def head_calibration(self, role: str) -> HeadCalibration:
        """Return what is known of a model's head besides its weights.

        Raises:
            BundleError: the calibration cannot be read.
        """
        calibration = self.manifest.calibration
        if calibration is None:
            return HeadCalibration()
        return HeadCalibration(self.head_draft(role), calibration.row_cost)

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
        from ..backends import BackendOptions
        from ..session import Session

        return Session(self, BackendOptions(backend, threads, precision, memory_limit, cuda_graph))
