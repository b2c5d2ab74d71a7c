"""What a bundle shall hold, and the checks that its parts fit each other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..runtime.bundle.manifest import Source
from ..runtime.bundle.manifest_checks import MAX_BATCH, MAX_GAMMA
from ..runtime.config import MARConfig, check_same_tokens
from ..runtime.errors import ExportError
from ..runtime.head.draft import ROW_COST
from ..runtime.schedule import TRAIN_STEPS
from .engines.update import EngineRequest
from .profiles import Limits, ProfileChange

if TYPE_CHECKING:
    from ..models.kl_decoder import KLDecoder
    from ..models.mar import MAR

# Numbers of a request, and what they can be; 0 calibration tokens fit none.
RANGES = {
    "head_steps": (1, TRAIN_STEPS),
    "max_batch": (1, MAX_BATCH),
    "max_gamma": (1, MAX_GAMMA),
    "calibration_tokens": (64, 1 << 20),
}


@dataclass(frozen=True)
class ExportRequest:
    """What to put into a bundle.

    Attributes:
        name: name of the bundle.
        target: the large model.
        draft: the small model, or None for a bundle that serves the target only.
        decoder: KL decoder; None for a pixel model, or for a bundle that makes latents only.
        head_steps: default number S of head steps.
        max_batch: images in one call at most.
        max_gamma: AR steps in one verification at most.
        class_names: names of the labels, or None.
        sources: where the weights came from.
        calibration_tokens: tokens that the head drafts are fitted on at least; 0 fits none.
        row_cost: what a row of the head costs in units of a call (`Calibration`).
        precisions: of graphs besides float32, `fp16` and `bf16`.
        head_chain: with a graph of the whole sequential chain of the head.
        operators: with the operators of `csd.plugins` as graphs.
        profile: ranges of dimensions that differ from the default.
        engines: what engines to build, or None.

    Raises:
        ExportError: a number is out of range, or the decoder does not fit.
        WeightsError: weights are not finite.
        ConfigError: the draft does not make the target's tokens.
    """

    name: str
    target: MAR
    draft: MAR | None
    decoder: KLDecoder | None
    head_steps: int
    max_batch: int
    max_gamma: int
    class_names: tuple[str, ...] | None
    sources: Mapping[str, Source]
    calibration_tokens: int = 2048
    row_cost: float = ROW_COST
    precisions: tuple[str, ...] = ()
    head_chain: bool = False
    operators: bool = False
    profile: tuple[ProfileChange, ...] = ()
    engines: EngineRequest | None = None

    def __post_init__(self) -> None:
        draft = None if self.draft is None else self.draft.config
        check_parts(self.target.config, draft, self.decoder)
        for name in RANGES:
            check_number(name, getattr(self, name))
        check_row_cost(self.row_cost)
        from ..models.checkpoint.fit import check_finite

        for role, module in {**self.models, "decoder": self.decoder}.items():
            if module is not None:
                check_finite(module.state_dict(), f"the {role}")

    @property
    def models(self) -> dict[str, MAR]:
        """The models by role."""
        models = {"target": self.target}
        return models if self.draft is None else {**models, "draft": self.draft}

    @property
    def limits(self) -> Limits:
        """What the graphs are exported for."""
        return Limits(self.max_batch, self.max_gamma, self.head_steps)


def check_parts(target: MARConfig, draft: MARConfig | None, decoder: KLDecoder | None) -> None:
    """Check that the parts of a bundle belong together.

    Raises:
        ConfigError: the draft does not make the target's tokens.
        ExportError: the decoder is for other latents, or there is none to decode.
    """
    if draft is not None:
        check_same_tokens(target, draft)
    if decoder is None:
        return
    if target.image_kind == "pixel":
        raise ExportError("a pixel model has no decoder: leave out --decoder")
    if decoder.latent_channels != target.vae_embed_dim:
        raise ExportError(
            f"the decoder takes {decoder.latent_channels} latent channels, the model makes "
            f"{target.vae_embed_dim} (vae_embed_dim): give the decoder that belongs to the model"
        )


def stride_warning(target: MARConfig, decoder: KLDecoder | None) -> str | None:
    """Say where a decoder makes images of another size than the model's configuration has.

    Nothing depends on `vae_stride` but the number of tokens, so the bundle is whole all the same.
    """
    if decoder is None or decoder.upscale == target.vae_stride:
        return None
    side = target.latent_shape[1] * decoder.upscale
    return (
        f"the decoder makes {decoder.upscale} pixels of a latent, the model's vae_stride is "
        f"{target.vae_stride}: images are {side} x {side}, not {target.img_size} x "
        f"{target.img_size}; give the decoder that belongs to the model if that is not meant"
    )


def check_number(name: str, value: int) -> None:
    """Check a number of a request against `RANGES`.

    Raises:
        ExportError: it is out of range.
    """
    least, most = RANGES[name]
    none = name == "calibration_tokens"
    if not (least <= value <= most or (none and value == 0)):
        raise ExportError(
            f"{name.replace('_', '-')} is {value}: give {least} to {most}{', or 0 for none' * none}"
        )


def check_row_cost(value: float) -> None:
    """Check what a row of the head costs.

    Raises:
        ExportError: it is no number above 0.
    """
    if not (math.isfinite(value) and value > 0):
        raise ExportError(f"row-cost is {value}: give a number above 0, as 0.06")
