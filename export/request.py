"""What a bundle shall hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..runtime.bundle.manifest import Source
from ..runtime.bundle.manifest_checks import MAX_BATCH, MAX_GAMMA
from ..runtime.errors import ExportError
from ..runtime.head.draft import ROW_COST
from ..runtime.schedule import TRAIN_STEPS
from .engines.update import EngineRequest
from .parts import DecoderPart, ModelPart, check_parts
from .profiles import ProfileChange

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
        decoder: the KL decoder; None for a pixel model, or for a bundle that makes latents
            only.
        head_steps: default number S of head steps; None is the target's.
        max_batch: images in one call at most.
        max_gamma: AR steps in one verification at most.
        class_names: names of the labels, or None.
        sources: where the weights came from.
        calibration_tokens: tokens that the head drafts are fitted on at least; 0 fits none.
        row_cost: what a row of the head costs in units of a call (`Calibration`).
        precisions: of graphs besides float32, `fp16` and `bf16`.
        head_chain: with a graph of the whole sequential chain of the head.
        local_steps: with the graphs of full and local AR steps.
        operators: with the operators of `csd.plugins` as graphs.
        profile: ranges of dimensions that differ from the default.
        engines: what engines to build, or None.
        slim: with one precision and what one target needs only (`slim.py`).

    Raises:
        ExportError: a number is out of range, or the decoder does not fit.
        ConfigError: the draft does not make the target's tokens.
    """

    name: str
    target: ModelPart
    draft: ModelPart | None
    decoder: DecoderPart | None
    head_steps: int | None
    max_batch: int
    max_gamma: int
    class_names: tuple[str, ...] | None
    sources: Mapping[str, Source]
    calibration_tokens: int = 2048
    row_cost: float = ROW_COST
    precisions: tuple[str, ...] = ()
    head_chain: bool = False
    local_steps: bool = False
    operators: bool = False
    profile: tuple[ProfileChange, ...] = ()
    engines: EngineRequest | None = None
    slim: bool = False

    def __post_init__(self) -> None:
        for name in RANGES:
            if (value := getattr(self, name)) is not None:
                check_number(name, value)
        check_row_cost(self.row_cost)
        draft = None if self.draft is None else self.draft.config
        check_parts(self.target.config, draft, self.decoder)

    @property
    def models(self) -> dict[str, ModelPart]:
        """The models by role."""
        models = {"target": self.target}
        return models if self.draft is None else {**models, "draft": self.draft}


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
