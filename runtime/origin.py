"""Where generated images come from: what has to be known to make them again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..plugins import host
from .options import GenerateOptions
from .version import VERSION


@dataclass(frozen=True)
class Origin:
    """What a session ran with.

    Attributes:
        bundle: what tells it from others (`Bundle.identity`).
        class_names: names of its classes, or None.
        backend: what ran the graphs.
        threads: CPU threads.
        host_library: file of the compiled host library, or None where NumPy did its work.
        versions: of csd, Python, NumPy and the backend's library.
    """

    bundle: Mapping[str, str]
    class_names: tuple[str, ...] | None
    backend: str
    threads: int
    host_library: str | None
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values, as the statistics of a run hold it."""
        return {
            "bundle": dict(self.bundle),
            "backend": self.backend,
            "threads": self.threads,
            "host_library": self.host_library,
            "versions": dict(self.versions),
        }

    def metadata(
        self, labels: tuple[int, ...], options: GenerateOptions, seed: int | None, first_image: int
    ) -> dict[str, Any]:
        """What a PNG says about its images; no path of this machine is in it.

        Args:
            labels: of the images.
            options: with all defaults filled in.
            seed: of their noise, or None where other noise was given.
            first_image: number of the first one in the seed's noise.
        """
        return {
            "csd": VERSION,
            "bundle": dict(self.bundle),
            "backend": self.backend,
            "labels": list(labels),
            "seed": seed,
            "first_image": first_image,
            "options": options.to_dict(),
        }


def host_library() -> str | None:
    """File of the compiled host library that is used here, or None."""
    path = host.find_library()
    return None if path is None else str(path)
