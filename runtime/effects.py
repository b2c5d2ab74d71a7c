"""When options of decoding, of the machine and of pictures have an effect.

Situations are runs with all defaults filled in, the name of a backend, and what pictures are made.
"""

from __future__ import annotations

from dataclasses import dataclass

from .bundle.manifest_checks import ENGINE_BACKENDS
from .command.line.effects import Effect
from .options import AUTO_REFRESH, CHAIN_STEPS, GenerateOptions

_VERIFYING = ("gamma", "verify", "acceptance", "inner_temperature", "prefill")


@dataclass(frozen=True)
class Names:
    """How a command calls the options that others hang on, with their values.

    Attributes:
        csd: the mode that drafts and verifies.
        parallel: the head sampler with a tolerance.
        auto: the period of full AR steps that follows the error.
        speculative: a head sampler that draws noise.
    """

    csd: str = "--mode csd"
    parallel: str = "--head parallel"
    auto: str = f"--refresh {AUTO_REFRESH}"
    speculative: str = f"--head speculative (with --head-steps {CHAIN_STEPS})"


# Of commands that compare several.
OF_LISTS = Names(
    "csd among --modes", "parallel among --heads", f"{AUTO_REFRESH} among --refresh",
    f"--heads speculative (with --head-steps {CHAIN_STEPS})",
)  # fmt: skip
# Of the search of a preset, where head and mode of the target are fixed.
OF_SEARCH = Names(csd="csd among --modes", parallel="csd or target among --modes")


def decoding_effects(names: Names) -> tuple[Effect[GenerateOptions], ...]:
    """When the options of `GenerateOptions` have an effect, of resolved ones."""
    return (
        Effect(
            _VERIFYING, lambda o: o.mode == "csd",
            "only mode csd drafts and verifies", f"give {names.csd}",
        ),
        Effect(
            ("head_tolerance",), _samples_in_parallel,
            "only the parallel sampler has a tolerance, which heads auto and speculative take in "
            "mode csd alone", f"give {names.parallel}",
        ),
        Effect(
            ("refresh_tolerance",), lambda o: o.refresh == AUTO_REFRESH,
            "only refresh auto follows a measured error", f"give {names.auto}",
        ),
        Effect(
            ("cfg_schedule", "cfg_interval"), lambda o: o.cfg != 1,
            "nothing is guided where cfg is 1", "give --cfg above 1",
        ),
        Effect(
            ("temperature",), lambda o: not o.solved,
            "the head's solver draws no noise that it could scale", f"give {names.speculative}",
        ),
    )  # fmt: skip


def _samples_in_parallel(options: GenerateOptions) -> bool:
    """Whether the parallel sampler may be taken: see `decoding/samplers.py:sampler_kind`."""
    aligned = options.mode == "csd" and options.head in ("auto", "speculative")
    return aligned or options.head == "parallel"


MACHINE: tuple[Effect[str], ...] = (
    Effect(
        ("memory_limit", "no_cuda_graph"), lambda backend: backend in ("auto", *ENGINE_BACKENDS),
        "only engines have it", "give --backend tensorrt or tensorrt_rtx",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Pictures:
    """What a run draws.

    Attributes:
        makes_images: whether the bundle has a decoder or needs none.
        sheet: whether all images come in one file; else each has one of its own.
    """

    makes_images: bool
    sheet: bool


PICTURES: tuple[Effect[Pictures], ...] = (
    Effect(
        ("out", "out_dir", "captions", "columns"), lambda made: made.makes_images,
        "this bundle has no decoder and makes latents only", "export with --decoder",
    ),
    Effect(
        ("columns",), lambda made: made.sheet,
        "each image comes in a file of its own", "give --out",
    ),
)  # fmt: skip
