"""How much memory a bundle takes: from the sizes of its files, before anything is loaded.

| part | of ONNX Runtime on a CPU | how it is known |
| --- | --- | --- |
| base | Python, NumPy, ONNX Runtime: 80 MB | measured |
| weights | files of the graphs that a session loads, those under 8 MiB twice with more than one thread; half precision is held in float32 too | sizes of files |
| room | 15 % of that, for packed matrices and activations | measured |
| adaLN values | those of the tokens of the largest AR step, twice; without guidance | sizes of the model |

Measured on the shipped pair, on the tests' models, and on a model of MAR-B's shape, whose figures
are in docs/models.md.
Peaks of one image on these were within a quarter of the estimate. Many images at once, large blocks
of `csd` and local AR steps take more. Engines hold their files' bytes on the device; tensors,
scratch and the driver's own are a guess there, as nothing was measured on a GPU.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ....runtime.backends.engines import graph_spec
from ....runtime.backends.onnx_runtime import ONE_THREAD_BYTES
from ....runtime.bundle.manifest import EngineSpec, Manifest, needed_graphs
from ....runtime.decoding.model import HOST_CHUNK_BYTES, HOST_CHUNK_TOKENS
from ....runtime.schedule import ARSchedule

BASE_BYTES = 80_000_000
ROOM = 1.15
TOLERANCE = 0.25
# Weights in float32 beside those of the file, where the processor has no products of half ones.
_COPIES = {"fp16": 2}
DEVICE_BASE_BYTES = 400_000_000


@dataclass(frozen=True)
class Memory:
    """What a backend takes.

    Attributes:
        weights: bytes of the files that it loads.
        host: bytes of memory, about.
        device: bytes of device memory, about; None for a backend without a device.
    """

    weights: int
    host: int
    device: int | None = None


def of_graphs(
    manifest: Manifest,
    sizes: Mapping[str, int],
    precision: str,
    threads: int,
    *,
    device: bool = False,
    ar_steps: int | None = None,
) -> Memory:
    """What ONNX Runtime takes.

    Args:
        manifest: of the bundle.
        sizes: bytes of its files by name.
        precision: of the graphs.
        threads: of the session.
        device: whether graphs run on a CUDA device.
        ar_steps: of the image; None is the model's own number.
    """
    weights = held = 0
    for name in needed_graphs(manifest):
        files = graph_spec(manifest, name, precision).files
        size = sum(sizes.get(file, 0) for file in files)
        weights += size
        twice = threads > 1 and size < ONE_THREAD_BYTES and not device
        held += size * 2 if twice else size
    values = _adaln_bytes(manifest, ar_steps)
    if device:
        return Memory(
            weights, BASE_BYTES + weights, DEVICE_BASE_BYTES + round(ROOM * weights) + values
        )
    held *= _COPIES.get(precision, 1)
    return Memory(weights, BASE_BYTES + round(ROOM * held) + 2 * values)


def of_engines(manifest: Manifest, engines: Collection[EngineSpec]) -> Memory:
    """What the engines of a session take."""
    weights = sum(engine.size for engine in engines)
    device = DEVICE_BASE_BYTES + round(ROOM * weights) + _adaln_bytes(manifest, None)
    return Memory(weights, BASE_BYTES + weights, device)


def _adaln_bytes(manifest: Manifest, ar_steps: int | None) -> int:
    """Bytes of adaLN values that the target makes at once, in its largest AR step."""
    config = manifest.target
    steps = min(ar_steps or config.num_iter, config.seq_len)
    tokens = max(ARSchedule(config.seq_len, steps, config.mask_strategy).sizes)
    per_token = 4 * manifest.head_steps * config.modulation_dim
    return per_token * min(tokens, max(HOST_CHUNK_TOKENS, HOST_CHUNK_BYTES // per_token))
