"""Latents of a data set: encoded once, drawn from their posterior at every training step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save
from torch import Tensor

from ...runtime.command.files import write_atomically
from ...runtime.errors import CsdError


@dataclass(frozen=True)
class Latents:
    """Posteriors of N images: `mean` and `std`, each `[N, c, h, w]` float32, before scaling."""

    mean: Tensor
    std: Tensor

    @property
    def scale(self) -> float:
        """The `latent_scale` of a model: drawn latents times it have a standard deviation of 1."""
        return float((self.mean.var() + self.std.square().mean()).rsqrt())

    @property
    def channels(self) -> int:
        """Number c of channels."""
        return self.mean.shape[1]


def save_latents(latents: Latents, path: Path) -> None:
    """Write latents in half precision."""
    tensors = {"mean": latents.mean, "std": latents.std}
    with write_atomically(path) as stream:
        stream.write(save({name: tensor.half().contiguous() for name, tensor in tensors.items()}))


def load_latents(path: Path) -> Latents:
    """Read what `save_latents` wrote.

    Raises:
        CsdError: the file is missing or holds something else.
    """
    try:
        tensors = load_file(path)
        return Latents(tensors["mean"].float(), tensors["std"].float())
    except FileNotFoundError as error:
        raise CsdError(
            f"no latents at {path}: train the autoencoder with the same --out first"
        ) from error
    except Exception as error:  # a damaged file can raise anything
        raise CsdError(
            f"cannot read the latents {path} ({type(error).__name__}): train the autoencoder again"
        ) from error
