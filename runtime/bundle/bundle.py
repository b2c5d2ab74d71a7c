"""A bundle: the directory that `csd-export` writes and the runtime reads."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from ..arguments import one_of
from ..backends.engines import renewal_command
from ..command.frame import os_error_text
from ..command.text import plain, shown
from ..errors import BundleError, OptionError
from ..head import AffineDraft, HeadCalibration
from .calibration import read_head_draft
from .checks import check_graphs, read_manifest
from .folder import CODE_FILES, BundleFolder
from .manifest import MANIFEST_FILE, Manifest, file_sha256
from .presets import Preset
from .signature import read_public_key
from .verification import POLICIES, FileCheck, seal_command

if TYPE_CHECKING:
    from ..session import Session


def file_check(folder: BundleFolder, manifest: Manifest, policy: str = "once") -> FileCheck:
    """What checks a bundle's files, and knows which command makes each again."""
    remedies = {engine.file: renewal_command(folder.path, engine) for engine in manifest.engines}
    remedies.update(dict.fromkeys(CODE_FILES, seal_command(folder.path)))
    return FileCheck(folder, manifest.file_hashes, remedies, policy)


class Bundle:
    """A validated bundle. Get one with `Bundle.open`.

    Attributes:
        path: the directory.
        manifest: what is in it.
        check: checks files before they are loaded.
    """

    def __init__(self, path: Path, manifest: Manifest, check: FileCheck | None = None) -> None:
        self.path = path
        self.manifest = manifest
        self.check = check or file_check(BundleFolder.at(path), manifest)

    def __repr__(self) -> str:
        models = " and ".join(self.manifest.models)
        return f"<Bundle {self.manifest.name} at {self.path}: {models}>"

    def identity(self) -> dict[str, str]:
        """Its name, and the SHA-256 of its manifest, which holds those of all its other files.

        Raises:
            OSError: the manifest cannot be read.
        """
        manifest_sha256 = file_sha256(self.path / MANIFEST_FILE)
        return {"name": self.manifest.name, "manifest_sha256": manifest_sha256}

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        verify_files: str = "once",
        links: bool = False,
        require_signature: str | Path | None = None,
    ) -> Bundle:
        """Read the manifest, and check every field of it, and that its files are there.

        Where files lie is checked before any of them is read: inside the folder, links followed,
        or in the blobs of the model hub's cache that it is part of (`folder.py`). Graphs are held
        against the manifest. The SHA-256 of a file is compared when it is loaded.

        Args:
            path: the directory.
            verify_files: `once` compares the SHA-256 of a file unless it was seen before and did
                not change since (`verification.py`), `always` each time, `never` not at all, but
                for engines and libraries, which are code.
            links: follow links to anywhere. They are read with your rights: only for a bundle
                whose links you know.
            require_signature: file of the Ed25519 public key, PEM or as OpenSSH has it, whose owner
                must have signed the bundle (`signature.py`). Hashes are then compared each time.

        Raises:
            BundleError: names what is wrong and the command that mends it.
            OptionError: an argument has a value that is not known, or the key cannot be read.
        """
        path = Path(path)
        policy, signer = one_of("verify-files", verify_files, POLICIES), None
        if require_signature is not None:
            if policy == "never":
                raise OptionError(
                    "verify-files is never, and a signature says something of files whose hashes "
                    "are compared only: give always, or no require-signature"
                )
            policy, signer = "always", read_public_key(Path(require_signature))
        folder = BundleFolder.at(path, links=links)
        manifest = read_manifest(folder, signer)
        check = file_check(folder, manifest, policy)
        check.require(name for name in manifest.file_hashes if name not in manifest.code)
        check_graphs(folder, manifest, check)
        return cls(path, manifest, check)

    def preset(self, name: str) -> Preset:
        """Return options that `csd-eval tune` found, by their name.

        Raises:
            OptionError: the bundle has no such preset; it names those that there are.
        """
        presets = self.manifest.presets
        if name not in presets:
            known = f"give one of {', '.join(presets)}, or make it" if presets else "make one"
            raise OptionError(
                f"bundle {self.path} has no preset {shown(name)}: {known} with csd-eval tune "
                f"{self.path}"
            )
        return presets[name]

    def head_draft(self, role: str) -> AffineDraft | None:
        """Return the fitted draft of a model's head, or None for a bundle without calibration.

        Raises:
            BundleError: it cannot be read or was altered, or its arrays do not fit the model.
        """
        calibration = self.manifest.calibration
        if calibration is None:
            return None
        config = self.manifest.models[role]
        self.check([calibration.file])
        try:
            return read_head_draft(
                self.path / calibration.file, role, config, calibration.head_steps
            )
        except OSError as error:
            raise BundleError(f"bundle {self.path}: {os_error_text(error)}") from error
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
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
            precision: `fp16`, `bf16`, `fp32` or `int8`; None takes the fastest engines that there
                are, and of graphs for ONNX Runtime float32, if the bundle has them.
            memory_limit: MB of device memory that engines may take, or None.
            cuda_graph: whether repeated calls of engines are recorded as CUDA graphs.

        Raises:
            BackendError: the backend is not installed or cannot run this bundle.
            OptionError: a value is out of range.
        """
        from ..backends import BackendOptions
        from ..session import Session

        return Session(self, BackendOptions(backend, threads, precision, memory_limit, cuda_graph))
