"""Ranges of the dynamic dimensions of graphs, for which engines are built.

| graph | dimension | least | typical | most |
| --- | --- | --- | --- | --- |
| `backbone` | B, sequences | 1 | 2 | 2 x the larger of max-batch and, with a draft, max-gamma + 1 |
| | V, known tokens | 0 | L / 2 | L |
| | P, queries | 1 | k | L |
| `backbone_full` | B, V, P | | as `backbone` | |
| `backbone_local` | B, V, P | | as `backbone` | |
| | N, tokens since the full AR step | 1 | 2 k | L |
| `head_modulation`, `head_step` | N, conditions | 1 | 2 k | what the runtime samples at once |
| | S, head steps | 1 | head-steps | head-steps |
| `head_step` | R, rows | 1 | 2 k x 16 | N S, at most `MOST_ROWS` |
| `head_chain` | N, tokens | 1 | k | as N above |
| | T, columns of `mods`, N or 2 N | 1 | 2 k | as N above |
| `decoder` | B, images | 1 | 1 | max-batch |
| `ops.*` | B, images | 1 | 1 | max-batch |
| | K, tokens of an image, or a window | 1 | 16 | the larger of L and head-steps |
| | N, tokens; R, rows or tries | 1 | k; 16 | as N above; `MOST_ROWS` |

k is the number of tokens of an AR step, L / min(num_iter, L) rounded up; 2 is for both branches
of guidance; 16 is the window of the speculative sampler. Prefix verification decodes images one by
one, so a backbone sees one image's max-gamma + 1 prefixes or all images' one. The runtime samples
as many tokens at once as have their adaLN values in `MODULATION_BYTES`, and splits a call that has
more rows than the engine takes: with so many rows the arithmetic takes longer than reading the
weights, so larger calls would save little and cost memory for their gathered adaLN values.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..plugins.operators import GRAPH_PREFIX
from ..runtime.bundle.manifest import GraphSpec, Manifest
from ..runtime.config import MARConfig
from ..runtime.decoding.model import MODULATION_BYTES
from ..runtime.errors import ExportError
from ..runtime.schedule import TRAIN_STEPS

MOST_ROWS = 1024
TYPICAL_WINDOW = 16

Range = tuple[int, int, int]
Profile = dict[str, Range]

_FORM = "give GRAPH.DIMENSION=LEAST:TYPICAL:MOST, as in head_step.R=1:64:512"


@dataclass(frozen=True)
class Limits:
    """What a bundle is exported for: images and AR steps in one call at most, head steps S."""

    max_batch: int
    max_gamma: int
    head_steps: int


class ProfileChange(NamedTuple):
    """A `--profile` option: a range for a dimension of a graph, or of both models' graph."""

    text: str
    graph: str
    dimension: str
    range: Range


def default_profile(graph: str, config: MARConfig, limits: Limits) -> Profile:
    """Return the ranges of a graph's dimensions; the table at the head of this file explains them.

    Args:
        graph: name in the bundle, as `target.head_step`.
        config: of the model that the graph belongs to, or of the target.
        limits: what the bundle is exported for.
    """
    length, steps = config.seq_len, limits.head_steps
    step_tokens = math.ceil(length / min(config.num_iter, length))
    fitting = MODULATION_BYTES // (4 * steps * config.modulation_dim)
    count = max(2, min(fitting, 2 * limits.max_batch * length))
    rows = min(count * steps, MOST_ROWS)
    conditions = _range(1, 2 * step_tokens, count)
    head_steps = (1, steps, steps)
    if graph.startswith(GRAPH_PREFIX):
        return {
            "B": (1, 1, limits.max_batch), "K": _range(1, TYPICAL_WINDOW, max(length, steps)),
            "N": _range(1, step_tokens, count), "R": _range(1, TYPICAL_WINDOW, MOST_ROWS),
            "S": head_steps,
        }  # fmt: skip
    kind = graph.rsplit(".", 1)[-1]
    sequences = 2 * max(limits.max_batch, limits.max_gamma + 1)
    backbone = {
        "B": (1, 2, sequences),
        "V": (0, length // 2, length),
        "P": _range(1, step_tokens, length),
    }
    return {
        "backbone": backbone,
        "backbone_full": backbone,
        "backbone_local": {**backbone, "N": _range(1, 2 * step_tokens, length)},
        "head_modulation": {"N": conditions, "S": head_steps},
        "head_step": {
            "R": _range(1, 2 * step_tokens * TYPICAL_WINDOW, rows), "N": conditions,
            "S": head_steps,
        },
        "head_chain": {"N": _range(1, step_tokens, count), "T": conditions, "S": head_steps},
        "decoder": {"B": (1, 1, limits.max_batch)},
    }[kind]  # fmt: skip


def _range(least: int, typical: int, most: int) -> Range:
    return least, min(typical, most), most


def default_profiles(
    graphs: Mapping[str, Iterable[str]], models: Mapping[str, MARConfig], limits: Limits
) -> dict[str, Profile]:
    """Return the ranges of the dimensions of each graph.

    Args:
        graphs: names of the dynamic dimensions by name of the graph.
        models: configurations by role, the target's among them.
        limits: what the bundle is exported for.
    """
    if "draft" not in models:  # no prefixes are verified
        limits = dataclasses.replace(limits, max_gamma=0)
    profiles: dict[str, Profile] = {}
    for name, dims in graphs.items():
        ranges = default_profile(name, models.get(_role(name), models["target"]), limits)
        profiles[name] = {d: ranges[d] for d in ranges if d in dims}
    return profiles


def parse_change(text: str) -> ProfileChange:
    """Read a `--profile` option.

    Raises:
        ExportError: it has another form, or its numbers are not in ascending order.
    """
    found = re.fullmatch(r"([\w.]+)\.([A-Z])=(\d{1,9}):(\d{1,9}):(\d{1,9})", text)
    if found is None:
        raise ExportError(f"profile is {text!r}: {_FORM}")
    graph, dimension = found[1], found[2]
    least, typical, most = (int(found[k]) for k in (3, 4, 5))
    if not least <= typical <= most:
        raise ExportError(f"profile {text!r} is not in ascending order: {_FORM}")
    return ProfileChange(text, graph, dimension, (least, typical, most))


def changed_profiles(
    profiles: Mapping[str, Profile], changes: Sequence[ProfileChange], config: MARConfig
) -> dict[str, Profile]:
    """Return the profiles of graphs with some ranges replaced.

    Args:
        profiles: by name of the graph.
        changes: what to replace.
        config: the target's configuration.

    Raises:
        ExportError: a graph or dimension is not there, or cannot have such sizes.
    """
    result = {name: dict(profile) for name, profile in profiles.items()}
    for change in changes:
        names = [n for n in result if change.graph in (n, n.split(".", 1)[-1])]
        if not names:
            raise ExportError(
                f"profile {change.text!r}: no graph {change.graph}; the bundle has "
                f"{', '.join(result)}"
            )
        for name in names:
            if change.dimension not in result[name]:
                raise ExportError(
                    f"profile {change.text!r}: {name} has no dimension {change.dimension}, it has "
                    f"{', '.join(result[name])}"
                )
            _check_limits(change, config)
            result[name][change.dimension] = change.range
    return result


def _check_limits(change: ProfileChange, config: MARConfig) -> None:
    least, most = 0 if change.dimension == "V" else 1, 1 << 20
    if change.dimension in ("V", "P"):
        most = config.seq_len
    elif change.dimension == "S":
        most = TRAIN_STEPS
    if change.range[0] < least or change.range[2] > most:
        raise ExportError(
            f"profile {change.text!r}: {change.dimension} of {change.graph} can be {least} to "
            f"{most}"
        )


def with_changes(manifest: Manifest, changes: Iterable[ProfileChange]) -> Manifest:
    """Return a manifest with other ranges for its graphs and their variants.

    A bundle of schema 1 gets the default ranges first: its own were not made for engines.

    Raises:
        ExportError: see `changed_profiles`.
    """
    limits = Limits(manifest.max_batch, manifest.max_gamma, manifest.head_steps)
    profiles = {name: dict(spec.profile) for name, spec in manifest.every_graph.items()}
    if manifest.schema_version < 2:
        profiles = default_profiles(profiles, manifest.models, limits)
    profiles = changed_profiles(profiles, list(changes), manifest.target)

    def profiled(graphs: Mapping[str, GraphSpec]) -> dict[str, GraphSpec]:
        return {
            name: dataclasses.replace(spec, profile=profiles[name]) for name, spec in graphs.items()
        }

    return dataclasses.replace(
        manifest,
        graphs=profiled(manifest.graphs),
        variants={precision: profiled(graphs) for precision, graphs in manifest.variants.items()},
    )


def _role(graph: str) -> str:
    return graph.split(".", 1)[0]
