"""Launch the built kernels on a CUDA device, through cuda.core.

    kernels = launch.load(Path("kernels"))
    call = launch.transition(..., dtype="float16")
    launch.run(kernels, call, stream)

Buffers are integers: addresses of dense, row-major device arrays whose types and shapes are those
of `kernels/launch.h`, outputs apart from inputs. `dtype` names the element type of the fields that
are `T` there. Nothing is copied and nothing waits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .build import ARCHITECTURES, MANIFEST, MANIFEST_VERSION
from .reference import AcceptanceKind

DataType = Literal["float32", "float16", "bfloat16"]
Argument = int | np.int32 | np.float32

# As in kernels.cuh.
THREADS = 128
WARP = 32
MOST_BLOCKS = 1 << 16

# Binaries for these run on exactly these: compatibility within a major version is for discrete
# devices only.
_INTEGRATED = (72, 87, 101, 110)


class LaunchError(RuntimeError):
    """The kernels cannot be launched here; one line with the remedy."""


@dataclass(frozen=True)
class Call:
    """A kernel, its grid, and its arguments: addresses, and values of 32 bits."""

    kernel: str
    blocks: int
    arguments: tuple[Argument, ...]


@dataclass(frozen=True)
class DensityBuffers:
    """`T`, the shape of the tokens."""

    mean: int
    std: int
    sum_log_std: int


@dataclass(frozen=True)
class AcceptOutputs:
    """bool `[B, K]`, float32 `[B, K]`, int32 `[B]`, int32 `[B]`."""

    accepted: int
    log_ratio: int
    prefix: int
    error: int


@dataclass(frozen=True)
class ResampleOutputs:
    """`T [N, C]`, bool `[N]`, int32 `[N]`."""

    x: int
    done: int
    error: int


@dataclass(frozen=True)
class WindowBuffers:
    """`T [N, K, C]` five times, float32 `[N, K]`, int32 `[N]`, float32 `[R, N, C]` and `[R, N]`."""

    proposed: int
    mean_p: int
    std_p: int
    mean_q: int
    std_q: int
    uniforms: int
    index: int
    pool_normals: int
    pool_uniforms: int


@dataclass(frozen=True)
class WindowOutputs:
    """int32 `[N]`, int32 `[N]`, `T [N, C]`, int32 `[N]`."""

    accepted: int
    next_index: int
    state: int
    status: int


@dataclass(frozen=True)
class TransitionBuffers:
    """`T [R, C]` four times, float32 `[R]`, `[R, C]`, int32 `[R]`, float32 `[S, 6]`.

    `eps_uncond` and `scale` are both 0 where there is no guidance.
    """

    x: int
    eps: int
    v: int
    eps_uncond: int
    scale: int
    noise: int
    step: int
    tables: int


@dataclass(frozen=True)
class TransitionOutputs:
    """`T [R, C]`, then float32 `[R, C]` three times."""

    next: int
    mean: int
    log_std: int
    x0hat: int


def accept(
    x: int,
    p: DensityBuffers,
    q: DensityBuffers,
    u: int,
    out: AcceptOutputs,
    *,
    batch: int,
    tokens: int,
    channels: int,
    kind: AcceptanceKind = "paper",
    inner_temperature: float = 1.0,
    dtype: DataType = "float32",
) -> Call:
    """CsdAccept: x `T [B, K, C]`, densities `T [B, K, C]`, u float32 `[B, K]`."""
    if not inner_temperature > 0:
        raise ValueError(f"inner_temperature is {inner_temperature}, and must be positive")
    sizes = _sizes(batch=batch, tokens=tokens, channels=channels)
    values = (*sizes, _kind(kind), np.float32(inner_temperature))
    inputs = (x, *astuple(p), *astuple(q), u)
    return Call(f"csd_accept_{dtype}", min(batch, MOST_BLOCKS), (*inputs, *values, *astuple(out)))


def resample(
    p: DensityBuffers,
    q: DensityBuffers,
    normals: int,
    uniforms: int,
    out: ResampleOutputs,
    *,
    tries: int,
    tokens: int,
    channels: int,
    kind: AcceptanceKind = "paper",
    dtype: DataType = "float32",
) -> Call:
    """CsdResample: densities `T [N, C]`, normals float32 `[R, N, C]`, uniforms `[R, N]`."""
    values = (*_sizes(tries=tries, tokens=tokens, channels=channels), _kind(kind))
    inputs = (*astuple(p), *astuple(q), normals, uniforms)
    blocks = _blocks(tokens, _lanes(channels))
    return Call(f"csd_resample_{dtype}", blocks, (*inputs, *values, *astuple(out)))


def verify_window(
    buffers: WindowBuffers,
    out: WindowOutputs,
    *,
    tokens: int,
    window: int,
    channels: int,
    tries: int,
    dtype: DataType = "float32",
) -> Call:
    """CsdVerifyWindow."""
    values = _sizes(tokens=tokens, window=window, channels=channels, tries=tries)
    arguments = (*astuple(buffers), *values, *astuple(out))
    return Call(f"csd_verify_window_{dtype}", _blocks(tokens, WARP), arguments)


def transition(
    buffers: TransitionBuffers,
    out: TransitionOutputs,
    *,
    rows: int,
    channels: int,
    steps: int,
    temperature: float = 1.0,
    dtype: DataType = "float32",
) -> Call:
    """CsdTransition."""
    if bool(buffers.eps_uncond) != bool(buffers.scale):
        raise ValueError("guidance needs both eps_uncond and scale")
    values = (*_sizes(rows=rows, channels=channels, steps=steps), np.float32(temperature))
    blocks = _blocks(rows, _lanes(channels))
    return Call(f"csd_transition_{dtype}", blocks, (*astuple(buffers), *values, *astuple(out)))


def _sizes(**sizes: int) -> tuple[np.int32, ...]:
    for name, size in sizes.items():
        if not (name == "channels") <= size < 1 << 31:
            raise ValueError(f"{name} is {size}")
    return tuple(np.int32(size) for size in sizes.values())


def _kind(kind: AcceptanceKind) -> np.int32:
    return np.int32(kind == "relaxed")


def _lanes(channels: int) -> int:
    return min(WARP, 1 << (channels - 1).bit_length())


def _blocks(tokens: int, lanes: int) -> int:
    per_block = THREADS // lanes
    return min(-(-tokens // per_block), MOST_BLOCKS)


@dataclass(frozen=True)
class LoadedKernels:
    """Kernels on a device, by name, and the module that launches them."""

    core: Any
    kernels: Mapping[str, Any]


def load(folder: Path, device_id: int = 0) -> LoadedKernels:
    """Load the cubin that fits a device, and make the device current.

    Args:
        folder: what `python -m csd.plugins.build --out` wrote.
        device_id: ordinal of the CUDA device.

    Raises:
        LaunchError: cuda.core, the device, or a cubin for it is missing, or it cannot be loaded.
    """
    core = _cuda_core()
    try:
        device = core.Device(device_id)
        device.set_current()
        major, minor = device.compute_capability
    except Exception as error:
        raise LaunchError(
            f"no CUDA device {device_id} ({' '.join(str(error).split())}): check nvidia-smi and "
            "the driver"
        ) from error
    capability = 10 * major + minor
    path, names = find_cubin(folder, capability)
    try:
        code = core.ObjectCode.from_cubin(path.read_bytes())
        kernels = {name: code.get_kernel(name) for name in names}
    except Exception as error:  # cuda.core raises its own exceptions
        raise LaunchError(
            f"cannot load {path} ({' '.join(str(error).split())}): "
            f"{_remedy(folder, _best(ARCHITECTURES, capability))}"
        ) from error
    return LoadedKernels(core, kernels)


def run(loaded: LoadedKernels, call: Call, stream: Any) -> None:
    """Enqueue a call; an empty batch enqueues nothing.

    Args:
        loaded: from `load`.
        call: from `accept`, `resample`, `verify_window` or `transition`.
        stream: a stream of cuda.core, or another that has `__cuda_stream__`.
    """
    if call.blocks:
        config = loaded.core.LaunchConfig(grid=call.blocks, block=THREADS)
        loaded.core.launch(stream, config, loaded.kernels[call.kernel], *call.arguments)


def find_cubin(folder: Path, capability: int) -> tuple[Path, tuple[str, ...]]:
    """Return the cubin for a compute capability (87 is 8.7) and the names of its kernels.

    Raises:
        LaunchError: there is none, or another one than was built, with the command that builds it.
    """
    wanted = _best(ARCHITECTURES, capability)
    if wanted is None:
        raise LaunchError(
            f"compute capability {capability / 10} is not supported: "
            f"csd has kernels for {', '.join(map(str, ARCHITECTURES))}"
        )
    remedy = _remedy(folder, wanted)
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        version, built = manifest["version"], {c["arch"]: c for c in manifest["cubins"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LaunchError(f"no kernels in {folder} ({error!r}): {remedy}") from error
    if version != MANIFEST_VERSION:
        raise LaunchError(f"{folder / MANIFEST} has version {version!r}: {remedy}")
    arch = _best(built, capability)
    if arch is None:
        listed = ", ".join(f"sm_{one}" for one in sorted(built))
        raise LaunchError(
            f"{folder} has kernels for {listed}, not for compute capability {capability / 10}: "
            f"{remedy}"
        )
    path = folder / built[arch]["file"]
    if not path.is_file():
        raise LaunchError(f"{path} is missing: {remedy}")
    if built[arch].get("sha256") != hashlib.sha256(path.read_bytes()).hexdigest():
        raise LaunchError(f"{path} is not the file that {MANIFEST} describes: {remedy}")
    return path, tuple(kernel["name"] for kernel in built[arch]["kernels"])


def _remedy(folder: Path, arch: int | None) -> str:
    return f"run python -m csd.plugins.build --out {folder} --arch {arch}"


def _best(architectures: Iterable[int], capability: int) -> int | None:
    """The latest architecture whose binaries a device runs."""
    fit = [
        arch
        for arch in architectures
        if arch == capability
        or (
            arch // 10 == capability // 10
            and arch < capability
            and arch not in _INTEGRATED
            and capability not in _INTEGRATED
        )
    ]
    return max(fit, default=None)


def _cuda_core() -> Any:
    try:
        import cuda.core as core  # pyright: ignore[reportMissingImports]

        if not hasattr(core, "launch"):  # where it was in its first versions
            import cuda.core.experimental as core  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise LaunchError(
            f"cuda.core cannot be imported ({error}): pip install cuda-core"
        ) from error
    return core
