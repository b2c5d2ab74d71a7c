"""A model in a few lines: its tokens follow from all that it is shown, and cost nothing."""

from __future__ import annotations

import dataclasses

import numpy as np

from csd.plugins.reference import Density
from csd.runtime.decoding.chains import Chains
from csd.runtime.decoding.evaluator import Conditions

LENGTH, CHANNELS = 16, 2


def resolved(options):
    """Options with the defaults that come from a model's configuration, as MAR's are."""
    return dataclasses.replace(
        options,
        mask_schedule="cosine",
        cfg_schedule=options.cfg_schedule or "linear",
        cfg_interval=options.cfg_interval or (0.0, 1.0),
    )


def token(context, position, label, scale, guided, gain, initial, per_step):
    """The token that a toy makes of what it is shown; `per_step [S, C]` without the last step's."""
    told = np.sin(gain * (context + 0.3 * position + 0.7 * label + 1.1 * scale + 0.9 * guided))
    noise = 0.3 * initial + 0.2 * (per_step * np.arange(1, len(per_step) + 1)[:, None]).sum(axis=0)
    return told + noise


def context_of(known):
    """What `known` pairs of a position and its token come to, `[C]`."""
    return sum((np.cos(1 + position) * value for position, value in known), np.zeros(CHANNELS))


@dataclasses.dataclass
class Toy:
    """Stands in for a `RuntimeModel`.

    `std` is that of the last head step: where it is small, a residual sample is the mean, to all
    that is compared. `log_std` is the logarithm of those of the others together.
    """

    role: str
    gain: float = 1.0
    std: float = 1e-7
    log_std: float = 0.0
    calls: list = dataclasses.field(default_factory=list)
    samples: list = dataclasses.field(default_factory=list)
    at_once: list = dataclasses.field(default_factory=list)

    def condition(self, tokens, visible, query, labels, scale, *, guided, where, stats):
        self.calls.append((where, len(labels)))
        rows = []
        for row, positions in enumerate(visible):
            known = [
                (position, value)
                for position, value in zip(positions.tolist(), tokens[row], strict=True)
                if position < LENGTH
            ]
            for at in query[row]:
                rows.append([*context_of(known), at, labels[row]])
        z = np.array(rows)
        assert len(scale) == len(z)
        return Conditions(z, z if guided else None, scale)

    def sample(self, conditions, request, options, *, together, images, most_tokens, where, stats):
        self.at_once.append(images)
        initial, per_step = request.noise
        count, steps, _ = per_step.shape
        self.samples.append((where, count, together, most_tokens, request.start is not None))
        guided = conditions.unconditional is not None
        made = np.array([
            token(z[:2], z[2], z[3], scale, guided, self.gain, first, noise[1:])
            for z, scale, first, noise in zip(
                conditions.z, conditions.scale, initial, per_step, strict=True
            )
        ]).astype(np.float32)  # fmt: skip
        shape = (count, CHANNELS)
        density = Density(made, np.full(shape, self.std), np.full(shape, self.log_std))
        # States say which token's they are, and which.
        trajectory = conditions.z[:, 2:] + 100 * np.arange(steps + 1)[:, None, None]
        if request.start is not None:
            np.testing.assert_array_equal(request.start, trajectory)
        # Whatever follows this chain follows its own noise, by which it can be told.
        noise = per_step + np.float32(0.01) if request.start is None else per_step
        return Chains(made, density, trajectory.astype(np.float32), noise)
