"""Feature spaces: an ONNX graph, and how images are brought to it.

Beside `FILE.onnx` may lie `FILE.json`, an object with any of

| name | meaning | where it is left out |
| --- | --- | --- |
| `features` | output with the features | `features`, else `logits`, else the only output |
| `logits` | output with a classifier's logits, or null | `logits` where there is one |
| `size` | height and width that images are resized to | the graph's |
| `range` | what bytes 0 and 255 become | `[-1, 1]` |
| `mean`, `std` | of each channel, subtracted and divided by after that | none |

Images go in as `[N, c, h, w]` float32, in grey where c is 1.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....runtime.arrays import Float32
from ....runtime.backends import OnnxLoader
from ....runtime.bundle import schema
from ....runtime.bundle.onnx_file import OnnxFile, read_onnx
from ....runtime.command.strict_json import parse_json
from ....runtime.command.text import plain, shown
from ....runtime.errors import CsdError, NumericsError

Images = NDArray[np.uint8]

# Images of a call.
CHUNK = 64
MOST_SIDE = 4096
_number = schema.number(-1e6, 1e6)
_SETTINGS = schema.record(
    {
        "features": schema.optional(schema.text()),
        "logits": schema.optional(schema.text()),
        "size": schema.optional(schema.list_of(schema.whole(1, MOST_SIDE), most=2, least=2)),
        "range": schema.list_of(_number, most=2, least=2),
        "mean": schema.list_of(_number, most=3),
        "std": schema.list_of(schema.number(1e-6, 1e6), most=3),
    },
    features=None, logits=None, size=None, range=(-1.0, 1.0), mean=(), std=(),
)  # fmt: skip


class FeatureError(CsdError):
    """A graph of features, or its settings, cannot be used."""


@dataclass(frozen=True)
class Outputs:
    """What a graph says of images.

    Attributes:
        features: `[N, F]` float32.
        logits: `[N, classes]` float32; of no columns where the graph is no classifier.
    """

    features: Float32
    logits: Float32


@dataclass(frozen=True)
class FeatureSpace:
    """A graph and its preprocessing.

    Attributes:
        path: of the graph.
        sha256: of graph and settings.
        title: to call it by.
        source: name of the input.
        shape: channels, height and width that it takes.
        features: name of the output with features.
        logits: name of the output with logits, or None.
        low, high: what bytes 0 and 255 become.
        mean, std: of each channel, or one of all.
    """

    path: Path
    sha256: str
    title: str
    source: str
    shape: tuple[int, int, int]
    features: str
    logits: str | None
    low: float
    high: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def at(cls, path: Path, title: str | None = None) -> FeatureSpace:
        """Read what a graph takes and gives, and the settings beside it.

        Raises:
            FeatureError: the graph or its settings cannot be used; it says what they lack.
        """
        try:
            graph = read_onnx(path)
            content = path.read_bytes()
        except FileNotFoundError as error:
            raise FeatureError(f"no graph at {path}: give the path of an ONNX file") from error
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else plain(str(error), 120)
            raise FeatureError(
                f"cannot read {path} as ONNX ({reason}): give the path of an ONNX file"
            ) from error
        settings_path = path.with_suffix(".json")
        values, text = _settings(settings_path)
        shape = _input_shape(path, graph, values["size"])
        features = _output(
            path, graph, values["features"], ("features", "logits"), settings_path.name
        )
        logits = values["logits"] or ("logits" if "logits" in graph.outputs else None)
        if logits is not None:
            _output(path, graph, logits, (), settings_path.name)
        for name in ("mean", "std"):
            if len(values[name]) not in (0, 1, shape[0]):
                raise FeatureError(
                    f"{settings_path}: {name} has {len(values[name])} values, the graph takes "
                    f"{shape[0]} channels: give as many, or one"
                )
        digest = hashlib.sha256(content + text).hexdigest()
        (source,) = graph.inputs
        return cls(
            path, digest, title or path.stem, source, shape, features, logits,
            low=values["range"][0], high=values["range"][1],
            mean=values["mean"] or (0.0,), std=values["std"] or (1.0,),
        )  # fmt: skip

    def prepare(self, images: Images) -> Float32:
        """Images `[N, H, W, 3]` as the graph takes them, `[N, c, h, w]`."""
        channels, height, width = self.shape
        if images.shape[1:3] != (height, width):
            images = _resized(images, height, width)
        scaled = images.astype(np.float32) * np.float32((self.high - self.low) / 255) + self.low
        if channels == 1:
            # Grey images are the mean of equal values: exact.
            scaled = scaled.mean(axis=-1, keepdims=True, dtype=np.float64)
        moved = (scaled - np.array(self.mean)) / np.array(self.std)
        return np.ascontiguousarray(moved.transpose(0, 3, 1, 2), dtype=np.float32)

    def loaded(self, threads: int) -> Callable[[Images], Outputs]:
        """Load the graph; what is returned takes images `[N, H, W, 3]`.

        Raises:
            BackendError: onnxruntime is missing or cannot load the file.
        """
        graph = OnnxLoader(threads).load(self.path)

        def extract(images: Images) -> Outputs:
            parts = [
                graph.run({self.source: self.prepare(images[start : start + CHUNK])})
                for start in range(0, len(images), CHUNK)
            ]
            features = self._joined([part[self.features] for part in parts])
            if self.logits is None:
                return Outputs(features, np.empty((len(images), 0), dtype=np.float32))
            return Outputs(features, self._joined([part[self.logits] for part in parts]))

        return extract

    def _joined(self, parts: list[NDArray[Any]]) -> Float32:
        rows = np.concatenate(parts).astype(np.float32)
        if not np.isfinite(rows).all():
            raise NumericsError(
                f"{self.path} returned values that are not finite: check it, its settings and the "
                "images it was given"
            )
        return rows.reshape(len(rows), -1)


def _settings(path: Path) -> tuple[dict[str, Any], bytes]:
    """The checked settings and their text; both are those of an empty object without a file."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        text = b"{}"
    except OSError as error:
        raise FeatureError(f"cannot read {path} ({error.strerror}): check the file") from error
    try:
        values = _SETTINGS(parse_json(text.decode("utf-8")), "")
    except ValueError as error:
        raise FeatureError(
            f"{path} is not what describes a graph's input ({plain(str(error), 160)}): correct it"
        ) from error
    return values, json.dumps(values).encode()


def _input_shape(path: Path, graph: OnnxFile, size: tuple[int, int] | None) -> tuple[int, int, int]:
    if len(graph.inputs) != 1:
        raise FeatureError(f"{path} has {len(graph.inputs)} inputs: give a graph of one, images")
    ((name, (dtype, shape)),) = graph.inputs.items()
    channels = shape[1] if len(shape) == 4 else None
    if dtype != "float32" or channels not in (1, 3):
        raise FeatureError(
            f"{path} takes {name} {dtype} {shown(list(shape))}: give a graph that takes float32 "
            "[N, 1, h, w] or [N, 3, h, w]"
        )
    if isinstance(shape[0], int):
        raise FeatureError(
            f"{path} takes {shape[0]} images at a time: export it with a dynamic first dimension"
        )
    height, width = size or shape[2:]
    if not (isinstance(height, int) and isinstance(width, int)):
        raise FeatureError(
            f'{path} does not say how large its images are: give "size" in '
            f"{path.with_suffix('.json').name}"
        )
    return int(channels), height, width


def _output(
    path: Path, graph: OnnxFile, wanted: str | None, usual: tuple[str, ...], settings: str
) -> str:
    if wanted is not None:
        if wanted not in graph.outputs:
            raise FeatureError(
                f"{path} has no output {shown(wanted)}, which {settings} names: give one of "
                f"{', '.join(graph.outputs)}"
            )
        return wanted
    found = [name for name in usual if name in graph.outputs] or [*graph.outputs]
    if not found or (len(graph.outputs) > 1 and found[0] not in usual):
        raise FeatureError(
            f'{path} has outputs {", ".join(graph.outputs)}: name one as "features" in {settings}'
        )
    return found[0]


def _resized(images: Images, height: int, width: int) -> Images:
    from PIL import Image

    resample = Image.Resampling.BICUBIC
    return np.stack([
        np.asarray(Image.fromarray(image).resize((width, height), resample)) for image in images
    ])  # fmt: skip
