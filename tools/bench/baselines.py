"""The PyTorch baselines of a bundle: its target's weights, found and checked before work."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...models.zoo import zoo_entry
from ...runtime.bundle.bundle import Bundle
from ...runtime.command.text import listed
from ...runtime.errors import CsdError, WeightsError
from ...runtime.libraries.imports import need

if TYPE_CHECKING:  # it needs PyTorch, which the other modes do not
    from .eager import EagerSampler

# By name and CPU threads.
Baselines = dict[tuple[str, int], "EagerSampler"]


def check_baselines(names: Sequence[str], device: str) -> None:
    """Check that PyTorch is here, and its device.

    Args:
        names: of the baselines.
        device: `cpu` or `cuda`.

    Raises:
        CsdError: one is missing.
    """
    if not names:
        return
    need(f"mode {names[0]}", "torch", otherwise=_without(names))
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise CsdError(
            f"mode {names[0]} on a GPU needs a PyTorch built for CUDA (here is "
            f"{torch.__version__}): install one, give --eager-device cpu, or {_without(names)}"
        )


def target_weights(bundle: Bundle, names: Sequence[str], weights: Path | None) -> Path:
    """Return the file of the target's weights.

    Args:
        bundle: whose target.
        names: of the baselines, for messages.
        weights: file to take, unless it is one of the zoo's, or of the same name as at export in
            the working directory.

    Raises:
        CsdError: the weights are gone or are other ones.
    """
    source = bundle.manifest.sources.get("target")
    if source is None:
        raise CsdError(
            "the bundle does not say which weights it was exported from: export it again, as "
            f"--target-weights is checked against them, or {_without(names)}"
        )
    path = weights or (
        zoo_entry(source.zoo).weights("target")
        if source.zoo is not None
        else Path(Path(source.path).name)  # bundles of old held its folder too
    )
    if not _same_weights(path, source.sha256):
        raise CsdError(
            f"the weights that the bundle was exported from are not {path} here: give "
            f"--target-weights FILE, or {_without(names)}"
        )
    return path


def _same_weights(path: Path, sha256: str) -> bool:
    from ...export.sources import weights_sha256

    try:
        return weights_sha256(path) == sha256
    except (WeightsError, OSError):
        return False


def _without(names: Sequence[str]) -> str:
    return f"leave {listed(names)} out of --modes"


def eager_samplers(
    bundle: Bundle,
    names: Sequence[str],
    weights: Path | None,
    threads: Collection[int],
    device: str,
) -> Baselines:
    """Load the target's weights once, for all of the PyTorch baselines.

    Args:
        bundle: whose target to load.
        names: of `BASELINES`.
        weights: file to load from, as `target_weights` takes it.
        threads: CPU thread counts.
        device: `cpu` or `cuda`.

    Raises:
        CsdError: PyTorch or its device is missing, or the weights are gone or are other ones.
    """
    if not names:
        return {}
    check_baselines(names, device)
    path = target_weights(bundle, names, weights)
    from ...models import load_mar
    from .eager import EagerSampler

    model = load_mar(path, bundle.manifest.target, bundle.manifest.sources["target"].key)
    return {
        (name, count): EagerSampler(model, count, name, device)
        for name in names
        for count in threads
    }
