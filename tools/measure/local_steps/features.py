"""Features of the zoo's classifier: what goes into its last layer."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ....models.zoo import zoo_entry
from ....runtime.arrays import Float32, Int64
from ....runtime.backends import Graph, OnnxLoader

# Images in one call.
AT_ONCE = 256


class FeatureNetwork:
    """Images `[N, 1, 28, 28]` in [-1, 1] to features `[N, F]` and recognised classes `[N]`.

    Args:
        graph: of a classifier.
        features: name of the output that holds the features.
        logits: likewise.
    """

    def __init__(self, graph: Graph, features: str, logits: str) -> None:
        self._graph, self._features, self._logits = graph, features, logits

    @classmethod
    def of_zoo(cls, name: str, threads: int) -> FeatureNetwork:
        """Load a zoo's classifier, with what goes into its last product as a second output."""
        import onnx

        model = onnx.load(zoo_entry(name).classifier)
        last = model.graph.node[-1]
        into, outputs = last.input[0], model.graph.output
        outputs.append(onnx.helper.make_tensor_value_info(into, 1, ["N", "F"]))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "features.onnx"
            onnx.save_model(model, path)
            return cls(OnnxLoader(threads).load(path), into, outputs[0].name)

    def __call__(self, images: Float32) -> tuple[NDArray[np.float64], Int64]:
        """Return features and classes."""
        features: list[Float32] = []
        classes: list[Int64] = []
        for start in range(0, len(images), AT_ONCE):
            out = self._graph.run({"image": images[start : start + AT_ONCE]})
            features.append(out[self._features])
            classes.append(out[self._logits].argmax(axis=1))
        return np.concatenate(features).astype(np.float64), np.concatenate(classes)


def real_images(data: Path | None, count: int) -> Float32:
    """The first training images, `[N, 1, 28, 28]`.

    Raises:
        CsdError: the data set is not there.
    """
    from ....models.training.data import DEFAULT_DATA, load_images

    return load_images(data or DEFAULT_DATA, "train")[0][:count].numpy()
