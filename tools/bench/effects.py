"""When options of a bench have an effect, by what is varied."""

from __future__ import annotations

from ...runtime.command.line.effects import Effect
from ...runtime.options import GenerateOptions
from .cases import BASELINES, Sweep

_RUNTIME = "target, draft or csd"

SWEEP: tuple[Effect[Sweep], ...] = (
    Effect(
        ("gammas", "temperatures"), lambda sweep: "csd" in sweep.modes,
        "only mode csd drafts and verifies", "give csd among --modes",
    ),
    Effect(
        ("heads", "refresh", "cfg_intervals"),
        lambda sweep: len(sweep.modes) > len(sweep.baselines),
        "PyTorch's modes have one head sampler, one guidance and compute the whole backbone",
        f"give {_RUNTIME} among --modes",
    ),
    Effect(
        ("fewer_steps",), lambda sweep: "target" in sweep.modes and 1 in sweep.refreshes,
        "it is the target with full AR steps that is measured at fewer of them",
        "give target among --modes and 1 among --refresh",
    ),
    Effect(
        ("target_weights", "eager_device"), lambda sweep: bool(sweep.baselines),
        "only PyTorch's modes read weights and have a device of their own",
        f"give {' or '.join(BASELINES)} among --modes",
    ),
)  # fmt: skip

# Of the options of the cases, beside those of every command.
GUIDED: tuple[Effect[GenerateOptions], ...] = (
    Effect(
        ("cfg_intervals",), lambda options: options.cfg != 1,
        "nothing is guided where cfg is 1", "give --cfg above 1",
    ),
)  # fmt: skip
