"""The models of an export: looked at before any work, then in memory one after another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast

from ..runtime.config import MARConfig, check_same_tokens
from ..runtime.errors import ExportError
from .memory import release_memory
from .progress import Report

if TYPE_CHECKING:
    from torch import nn

    from ..models.kl_decoder import KLDecoder
    from ..models.mar import MAR

DECODER = "decoder"

T = TypeVar("T", bound="nn.Module")


class Parts:
    """Models by name, of which one at most is in memory.

    Args:
        models: what reads the model of each role.
        decoder: what reads the KL decoder, or None.
    """

    def __init__(
        self, models: Mapping[str, Callable[[], MAR]], decoder: Callable[[], KLDecoder] | None
    ) -> None:
        self._models, self._decoder = models, decoder
        self._held: tuple[str, nn.Module] | None = None

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles of the models."""
        return tuple(self._models)

    @property
    def has_decoder(self) -> bool:
        """Whether there is a decoder."""
        return self._decoder is not None

    def model(self, role: str) -> MAR:
        """Return a model, which is read unless it was the last one.

        Raises:
            WeightsError: it cannot be read.
        """
        return self._get(role, self._models[role])

    def decoder(self) -> KLDecoder:
        """Return the decoder, which is read unless it was the last part.

        Raises:
            WeightsError: it cannot be read.
        """
        assert self._decoder is not None
        return self._get(DECODER, self._decoder)

    def _get(self, name: str, load: Callable[[], T]) -> T:
        if self._held is None or self._held[0] != name:
            self.free()
            self._held = name, load()
        return cast("T", self._held[1])

    def free(self) -> None:
        """Let go of the part that is in memory, and give its memory back to the system.

        PyTorch's exporter keeps parameters, one of which would keep a whole file that is mapped:
        they lose their values.
        """
        if self._held is not None:
            for tensor in (*self._held[1].parameters(), *self._held[1].buffers()):
                tensor.data = tensor.data.new_empty(0)
        self._held = None
        release_memory()


@dataclass(frozen=True)
class PartsFound:
    """What is known of the parts before any of them is exported.

    Attributes:
        configs: configuration of each role's model.
        upscale: pixels of the decoder along a side of a latent; None without one.
    """

    configs: Mapping[str, MARConfig]
    upscale: int | None


def inspect_parts(parts: Parts, report: Report) -> PartsFound:
    """Look at every part, and whether they fit each other.

    The target comes last, and is still in memory when its export begins.

    Args:
        parts: to look at.
        report: called with a line for each.

    Raises:
        WeightsError: one cannot be read, or its weights are not finite.
        ExportError: the decoder does not fit.
        ConfigError: the draft does not make the target's tokens.
    """
    # Not before: it brings PyTorch.
    from ..models.checkpoint.fit import check_finite

    latents: tuple[int, int] | None = None
    if parts.has_decoder:
        report(f"{DECODER}: reading")
        decoder = parts.decoder()
        check_finite(decoder.state_dict(), f"the {DECODER}")
        latents = decoder.latent_channels, decoder.upscale
        del decoder
    configs: dict[str, MARConfig] = {}
    for role in reversed(parts.roles):
        report(f"{role}: reading")
        model = parts.model(role)
        check_finite(model.state_dict(), f"the {role}")
        configs[role] = model.config
        del model
    configs = {role: configs[role] for role in parts.roles}
    check_parts(configs["target"], configs.get("draft"), latents)
    return PartsFound(configs, None if latents is None else latents[1])


def check_parts(
    target: MARConfig, draft: MARConfig | None, latents: tuple[int, int] | None
) -> None:
    """Check that the parts of a bundle belong together.

    Args:
        target: configuration of the target.
        draft: configuration of the draft, if there is one.
        latents: channels that the decoder takes and pixels that it makes of one, or None.

    Raises:
        ConfigError: the draft does not make the target's tokens.
        ExportError: the decoder is for other latents, or there is nothing to decode.
    """
    if draft is not None:
        check_same_tokens(target, draft)
    if latents is None:
        return
    if target.image_kind == "pixel":
        raise ExportError("a pixel model has no decoder: leave out --decoder")
    if latents[0] != target.vae_embed_dim:
        raise ExportError(
            f"the decoder takes {latents[0]} latent channels, the model makes "
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
