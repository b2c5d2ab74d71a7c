"""The learning rate of a step: warm-up, a constant, and a decay that may come at any time.

Nothing before the decay depends on when the run ends, so a run is extended over as many sittings
as there are, and a short decay makes a good model of any of its states (Hu et al., arXiv
2404.06395).
"""

from __future__ import annotations


def warmup_stable_decay(step: int, *, warmup: int, decay_start: int, decay_steps: int) -> float:
    """Return the share of the full learning rate that `step` (from 0) is taken with.

    It rises linearly to 1 over `warmup` steps and falls linearly from 1 at `decay_start` to 0
    at `decay_start + decay_steps`.
    """
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    left = 1.0 - max(0, step - decay_start) / decay_steps if decay_steps else 1.0
    return rise * max(0.0, left)
