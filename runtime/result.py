"""What a decode gives: images, tokens, counts, and the files that are made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arguments import instance_of, whole_number_from
from .errors import OptionError
from .images import save_png, sheet
from .labels import class_name
from .options import GenerateOptions
from .origin import Origin
from .stats import Stats


@dataclass(frozen=True, eq=False, repr=False)
class GenerateResult:
    """What `generate` returns.

    Attributes:
        images: uint8 `[B, H, W, 3]`; H = W = 0 where the bundle has no decoder for its latents.
        latents: float32 `[B, c, h, w]`.
        tokens: float32 `[B, L, C]`.
        stats: counts and times.
        options: the options with all defaults filled in.
        labels: class index of each image.
        seed: of the noise, or None where other noise was given.
        first_image: number of the first image in the seed's noise.
        origin: bundle, backend and versions.
    """

    images: NDArray[np.uint8]
    latents: NDArray[np.float32]
    tokens: NDArray[np.float32]
    stats: Stats
    options: GenerateOptions
    labels: tuple[int, ...]
    seed: int | None
    first_image: int
    origin: Origin

    def __repr__(self) -> str:
        count, height, width, _ = self.images.shape
        size = f"{width} x {height}" if width else "latents only"
        return (
            f"<GenerateResult: {count} image{'s' * (count != 1)}, {size}, mode "
            f"{self.options.mode}, head {self.options.head}, seed {self.seed}, "
            f"{self.stats.seconds:.2f} s>"
        )

    @property
    def captions(self) -> list[str]:
        """The class of each image by name, or by index where the bundle has no names."""
        return [class_name(label, self.origin.class_names) for label in self.labels]

    def save(self, path: str | Path, columns: int | None = None, *, captions: bool = False) -> None:
        """Write a PNG: one image as it is, several as a grid. How they were made is in it.

        Args:
            path: where to; an existing file is replaced once the new one is whole.
            columns: images in a row; default as square as possible.
            captions: write each image's class under it.

        Raises:
            OptionError: an argument is of another type, or there are no images because the bundle
                has no decoder.
            OSError: the file cannot be written.
        """
        if columns is not None:
            columns = whole_number_from("columns", columns, 1)
        self._save(path, range(len(self.images)), columns, captions)

    def save_each(self, folder: str | Path, *, captions: bool = False) -> list[Path]:
        """Write a PNG for each image at its true size, as `000-bag.png`.

        Args:
            folder: where to; it is made if it is missing. Existing files are replaced, each once
                the new one is whole.
            captions: write the image's class under it.

        Returns:
            The files.

        Raises:
            OptionError: as for `save`.
            OSError: a file cannot be written.
        """
        folder = Path(instance_of("folder", folder, (str, Path), "a path"))
        folder.mkdir(exist_ok=True)
        paths = [folder / name for name in image_names(self.captions)]
        for index, path in enumerate(paths):
            self._save(path, range(index, index + 1), None, captions)
        return paths

    def _save(self, path: str | Path, chosen: range, columns: int | None, captions: bool) -> None:
        path = Path(instance_of("path", path, (str, Path), "a path"))
        if self.images.shape[1] == 0:
            raise OptionError(
                "there are no images to save: the bundle has no decoder and makes latents only; "
                "export it with --decoder"
            )
        part = slice(chosen.start, chosen.stop)
        picture = sheet(self.images[part], columns, self.captions[part] if captions else None)
        metadata = self.origin.metadata(
            self.labels[part], self.options, self.seed, self.first_image + chosen.start
        )
        save_png(path, picture, metadata=metadata)

    def to_dict(self) -> dict[str, Any]:
        """Return all but the arrays as JSON values: what `csd-generate --stats` writes."""
        return {
            "mode": self.options.mode,
            "options": self.options.to_dict(),
            "labels": list(self.labels),
            "seed": self.seed,
            "first_image": self.first_image,
            **self.stats.to_dict(),
            **self.origin.to_dict(),
        }


def image_names(captions: Sequence[str]) -> list[str]:
    """Names of the files of images whose classes are these, one an image: `000-bag.png`."""
    digits = max(3, len(str(len(captions) - 1)))
    return [f"{k:0{digits}}-{_file_stem(caption)}.png" for k, caption in enumerate(captions)]


def _file_stem(text: str) -> str:
    """A class's name as a part of a file's name: letters, digits and `.-_`, at most 60."""
    kept = "".join(c if c.isalnum() or c in "._-" else "-" for c in text)
    return kept.encode()[:60].decode(errors="ignore").strip(".-") or "class"
