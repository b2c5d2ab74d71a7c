"""The models of an export: known before any work, in memory one after another, each once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from ..runtime.config import MARConfig, check_same_tokens
from ..runtime.errors import ExportError
from .memory import release_memory

if TYPE_CHECKING:
    from torch import nn

    from ..models.kl_decoder import KLDecoder
    from ..models.mar import MAR

DECODER = "decoder"

T = TypeVar("T", bound="nn.Module")


@dataclass(frozen=True)
class ModelPart:
    """A model that is not read yet.

    Attributes:
        config: its configuration, as `read` makes it.
        read: reads it.
    """

    config: MARConfig
    read: Callable[[], MAR]


@dataclass(frozen=True)
class DecoderPart:
    """A decoder that is not read yet.

    Attributes:
        channels: of the latents that it takes.
        upscale: pixels that it makes of a latent along a side.
        read: reads it.
    """

    channels: int
    upscale: int
    read: Callable[[], KLDecoder]


@contextlib.contextmanager
def in_memory(read: Callable[[], T]) -> Generator[T]:
    """Read a part, and give its memory back to the system at the end.

    PyTorch's exporter keeps parameters, one of which would keep a whole file that is mapped: they
    lose their values.

    Raises:
        WeightsError: it cannot be read.
    """
    module = read()
    try:
        yield module
    finally:
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = tensor.data.new_empty(0)
        del module
        release_memory()


def check_parts(target: MARConfig, draft: MARConfig | None, decoder: DecoderPart | None) -> None:
    """Check that the parts of a bundle belong together.

    Args:
        target: configuration of the target.
        draft: configuration of the draft, if there is one.
        decoder: of latents, if there is one.

    Raises:
        ConfigError: the draft does not make the target's tokens.
        ExportError: the decoder is for other latents, or there is nothing to decode.
    """
    if draft is not None:
        check_same_tokens(target, draft)
    if decoder is None:
        return
    if target.image_kind == "pixel":
        raise ExportError("a pixel model has no decoder: leave out --decoder")
    if decoder.channels != target.vae_embed_dim:
        raise ExportError(
            f"the decoder takes {decoder.channels} latent channels, the model makes "
            f"{target.vae_embed_dim} (vae_embed_dim): give the decoder that belongs to the model"
        )


def stride_warning(target: MARConfig, upscale: int) -> str | None:
    """Say where a decoder makes images of another size than the model's configuration has.

    Nothing depends on `vae_stride` but the number of tokens, so the bundle is whole all the same.

    Args:
        target: configuration of the target.
        upscale: pixels that the decoder makes of a latent along a side.
    """
    if upscale == target.vae_stride:
        return None
    side = target.latent_shape[1] * upscale
    return (
        f"the decoder makes {upscale} pixels of a latent, the model's vae_stride is "
        f"{target.vae_stride}: images are {side} x {side}, not {target.img_size} x "
        f"{target.img_size}; give the decoder that belongs to the model if that is not meant"
    )
