"""How many generated images a classifier recognises as the class that was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..models.zoo import zoo_entry
from ..runtime.arrays import Float32
from ..runtime.backends import OnnxLoader
from ..runtime.bundle.bundle import Bundle
from ..runtime.errors import NumericsError
from ..runtime.images import to_uint8


class ImageClassifier:
    """An ONNX classifier: `image [N, c, h, w]` in [-1, 1] -> `logits [N, classes]`.

    Raises:
        BackendError: onnxruntime is missing or cannot load the file.
    """

    def __init__(self, path: Path, threads: int) -> None:
        self._graph = OnnxLoader(threads).load(path)

    def accuracy(self, images: Float32, labels: Sequence[int] | NDArray[np.integer]) -> float:
        """Share of images `[N, c, h, w]` that are given their label.

        Raises:
            NumericsError: the classifier returned values that are not finite, whose largest would
                be the first class.
        """
        logits = self._graph.run({"image": images})["logits"]
        if not np.isfinite(logits).all():
            raise NumericsError(
                "the classifier returned values that are not finite: check the images it was given"
            )
        return float((logits.argmax(axis=1) == np.asarray(labels)).mean())


def bundle_classifier(bundle: Bundle, threads: int) -> ImageClassifier | None:
    """Return the classifier of the zoo pair that a bundle holds, or None for other models.

    Raises:
        WeightsError: the pair is none of this zoo's.
        BackendError: onnxruntime is missing or cannot load the classifier.
    """
    zoo = bundle.manifest.zoo
    return None if zoo is None else ImageClassifier(zoo_entry(zoo).classifier, threads)


def as_shown(latents: Float32) -> Float32:
    """Pixel latents as a viewer sees them: clipped and rounded to bytes, `[N, c, h, w]`."""
    shown = to_uint8(latents).transpose(0, 3, 1, 2)
    return shown.astype(np.float32) / 127.5 - 1


def balanced_labels(count: int, classes: int) -> list[int]:
    """Labels 0, 1, .. repeated until there are `count`."""
    return [index % classes for index in range(count)]
