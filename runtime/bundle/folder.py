"""Where the files of a bundle are: always inside its folder, links followed.

A model hub's cache keeps files in one folder of blobs, and a bundle is a folder of links into it:

    blobs/<hash>
    snapshots/<revision>/manifest.json -> ../../blobs/<hash>

That is recognised: links may lead to a file right in the real folder `blobs` beside the folder
`snapshots` that the bundle is in. Links to anywhere else are followed on request only.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ...plugins.build import MANIFEST as KERNELS_MANIFEST
from ..command.frame import os_error_text
from ..command.text import plain
from ..errors import BundleError

# What is made where the bundle runs: the library of TensorRT's plugins, and the folder of the
# head's kernels. They are code, and are loaded where the manifest names them
# (`csd-export --seal`).
PLUGIN_LIBRARY = "libcsd_plugins.so"
KERNELS_FOLDER = "kernels"
# What the manifest names of them: the list of the kernels has the SHA-256 of each.
KERNELS_LIST = f"{KERNELS_FOLDER}/{KERNELS_MANIFEST}"
CODE_FILES = (PLUGIN_LIBRARY, KERNELS_LIST)
SIGNATURE_FILE = "manifest.sig"


@dataclass(frozen=True)
class BundleFolder:
    """A folder whose files are looked for inside it only.

    Attributes:
        path: as it was given, for messages.
        root: without links.
        blobs: folder of a hub's cache that links may lead to, or None.
        links: whether links may lead anywhere.
    """

    path: Path
    root: Path
    blobs: Path | None = None
    links: bool = False

    @classmethod
    def at(cls, path: Path, *, links: bool = False) -> BundleFolder:
        """Look at a folder; `links` as for `Bundle.open`."""
        root = Path(os.path.realpath(path))
        return cls(path, root, _blobs_beside(root), links)

    def file(self, name: str) -> Path | None:
        """Return a file's path without links, or None where nothing is.

        Args:
            name: a checked relative name (`schema.relative_name`).

        Raises:
            BundleError: it lies outside, or is no regular file.
        """
        try:
            found = Path(os.path.realpath(self.root / name, strict=True))
            kind = found.stat().st_mode
        except FileNotFoundError:
            return None
        except PermissionError as error:
            raise BundleError(f"bundle {self.path}: {os_error_text(error)}") from error
        except OSError as error:  # a loop of links
            raise BundleError(
                f"bundle {self.path}: cannot look at {name} ({error.strerror}): "
                f"cp -rL {self.path} COPY with the right to read it, and open the copy"
            ) from error
        if not self._allows(found):
            raise BundleError(
                f"bundle {self.path}: {name} is a link that leaves the bundle (to "
                f"{plain(str(found), 120)}): cp -rL {self.path} COPY and open the copy, if you "
                "trust where it leads"
            )
        if not stat.S_ISREG(kind):
            raise BundleError(
                f"bundle {self.path}: {name} is not a regular file: export the bundle again"
            )
        return found

    def _allows(self, found: Path) -> bool:
        return self.links or self.root in found.parents or found.parent == self.blobs

    def check(self, names: Iterable[str]) -> None:
        """Check where files lie, those that are missing aside, before any of them is read.

        Raises:
            BundleError: as for `file`.
        """
        for name in names:
            self.file(name)

    def check_own(self, names: Iterable[str]) -> None:
        """Check that files and folders that will be written are the folder's own, and no links.

        Raises:
            BundleError: one is a link, or lies behind one.
        """
        for name in names:
            if Path(os.path.realpath(self.root / name)) != self.root / name:
                raise BundleError(
                    f"bundle {self.path}: {name} is a link, and what it leads to may belong to "
                    f"others: cp -rL {self.path} COPY and give the copy"
                )


def _blobs_beside(root: Path) -> Path | None:
    """Return the folder of blobs of the hub's cache that a folder lies in, or None."""
    for folder in (root, *root.parents):
        blobs = folder.parent / "blobs"
        if folder.name == "snapshots" and blobs.is_dir() and not blobs.is_symlink():
            return blobs
    return None
