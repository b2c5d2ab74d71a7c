"""What a bundle shall hold, and the checks that its parts fit each other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..runtime.bundle.manifest import Source
from ..runtime.bundle.manifest_checks import MAX_BATCH, MAX_GAMMA
from ..runtime.config import check_same_tokens
from ..runtime.errors import ExportError
from ..runtime.head.draft import ROW_COST
from ..runtime.options import CHAIN_STEPS
from ..runtime.schedule import TRAIN_STEPS
from .engines.update import EngineRequest
from .profiles import Limits, ProfileChange

if TYPE_CHECKING:
    from torch import nn

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
        ExportError: a number is out of range, weights are not finite, or the decoder does not fit.
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
        target = self.target.config
        if self.draft is not None:
            check_same_tokens(target, self.draft.config)
        if self.decoder is not None:
            if target.image_kind == "pixel":
                raise ExportError("a pixel model has no decoder: leave out --decoder")
            if self.decoder.latent_channels != target.vae_embed_dim:
                raise ExportError(
                    f"the decoder takes {self.decoder.latent_channels} latent channels, the model "
                    f"makes {target.vae_embed_dim}: give the decoder that belongs to the model"
                )
        for name in RANGES:
            check_number(name, getattr(self, name))
        check_row_cost(self.row_cost)
        for role, module in {**self.models, "decoder": self.decoder}.items():
            if module is not None:
                _check_finite(role, module)

    @property
    def models(self) -> dict[str, MAR]:
        """The models by role."""
        models = {"target": self.target}
        return models if self.draft is None else {**models, "draft": self.draft}

    @property
    def chain_steps(self) -> int:
        """Head steps of the chain, which drafts are fitted for."""
        return CHAIN_STEPS if self.target.config.solved else self.head_steps

    @property
    def limits(self) -> Limits:
        """What the graphs are exported for."""
        return Limits(self.max_batch, self.max_gamma, self.head_steps)


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


def _check_finite(role: str, module: nn.Module) -> None:
    for name, tensor in module.state_dict().items():
        if not tensor.isfinite().all():
            raise ExportError(
                f"{name} of the {role} holds values that are not finite: give weights that were "
                "saved before their training diverged"
            )
