"""The models that options name: found and held against each other, to be read one by one.

Finding maps a file and looks at names, shapes and values, tensor by tensor: what does not fit, or
is not finite, is said before a graph is written.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..models.checkpoint import Weights, build_mar, check_mar, find_mar
from ..models.checkpoint.files import WeightFiles
from ..models.checkpoint.shape import Hints, Shape, check_config, infer_config
from ..models.families import load_config
from ..models.kl_decoder import build_kl_decoder, check_kl_decoder, decoder_shape, find_kl_decoder
from ..models.zoo import ZooEntry, zoo_entry
from ..runtime.bundle.manifest import Source, file_sha256
from ..runtime.command.line.logs import logger
from ..runtime.command.text import plain
from ..runtime.config import SHARED_FIELDS, MARConfig
from .arguments import AUTO, head_counts, weights_by_role
from .class_names import class_names
from .parts import DecoderPart, ModelPart, check_parts, stride_warning
from .progress import Report

_LOG = logger(__name__)


@dataclass(frozen=True)
class FoundModels:
    """Models that were found, and what is told of them in a bundle.

    Attributes:
        name: of the bundle.
        models: by role.
        decoder: of latents, or None.
        class_names: of the labels, or None.
        sources: by role, where the weights came from.
    """

    name: str
    models: Mapping[str, ModelPart]
    decoder: DecoderPart | None
    class_names: tuple[str, ...] | None
    sources: Mapping[str, Source]


def find_models(args: argparse.Namespace, report: Report) -> FoundModels:
    """Find the models of `csd-export`'s options.

    Args:
        args: checked options.
        report: called with what was chosen where there was a choice.

    Raises:
        WeightsError: a file cannot be read, or does not fit its configuration.
        ConfigError: a configuration is not valid, or the draft does not make the target's tokens.
        ExportError: the decoder does not belong to the model, or class names cannot be read.
        BackendError, OSError: as for `read_weights`.
    """
    if args.zoo:
        return _of_zoo(zoo_entry(args.zoo))
    wanted = weights_by_role(args.weights)
    found: dict[str, Weights] = {}
    decoder: DecoderPart | None = None
    if args.decoder:
        weights = found["decoder"] = find_kl_decoder(args.decoder, wanted.get("decoder"))
        decoder = DecoderPart(*decoder_shape(weights), partial(build_kl_decoder, weights))
    configs: dict[str, MARConfig] = {}
    for role in ("target", "draft"):
        path, asked = getattr(args, role), getattr(args, f"{role}_config")
        if not path:
            continue
        config = None if asked == AUTO else load_config(asked)
        weights = found[role] = find_mar(path, wanted.get(role), config)
        shape = Shape.of(weights.tensors, path)
        if config is None:
            heads = head_counts(role, getattr(args, f"{role}_heads"))
            hints = _hints(role, heads, weights, decoder, configs.get("target"))
            config, source = infer_config(shape, path, hints)
            report(f"{role}: configuration {_told(config)}; {source}")
        check_config(shape, config, path)
        configs[role] = config
    target = configs["target"]
    check_parts(target, configs.get("draft"), decoder)
    if decoder is not None and (warning := stride_warning(target, decoder.upscale)):
        report(f"warning: {warning}")
    for role, weights in found.items():
        _LOG.info("%s: %d tensors of %s", role, len(weights.tensors), weights.path)
        if weights.key:
            report(f"{role}: {plain(weights.described())}")
        if role in configs:
            check_mar(weights, configs[role])
        else:
            check_kl_decoder(weights)
    return FoundModels(
        name=args.target.stem,
        models={
            role: ModelPart(config, partial(build_mar, found[role], config))
            for role, config in configs.items()
        },
        decoder=decoder,
        class_names=class_names(args.class_names, target.class_num, report),
        sources={role: _source(weights) for role, weights in found.items()},
    )


def _of_zoo(entry: ZooEntry) -> FoundModels:
    models: dict[str, ModelPart] = {}
    sources: dict[str, Source] = {}
    for role in ("target", "draft"):
        path, config = entry.weights(role), entry.config(role)
        weights = find_mar(path)
        check_mar(weights, config)
        models[role] = ModelPart(config, partial(build_mar, weights, config))
        sources[role] = Source.of_zoo(entry.name, file_sha256(path))
    return FoundModels(entry.name, models, None, entry.class_names, sources)


def _hints(
    role: str,
    heads: tuple[int, int] | None,
    weights: Weights,
    decoder: DecoderPart | None,
    target: MARConfig | None,
) -> Hints:
    """What is known of a model besides its weights; a draft makes the target's tokens."""
    shared = {} if target is None else {name: getattr(target, name) for name in SHARED_FIELDS}
    return Hints(
        heads=heads,
        heads_option=f"--{role}-heads ENCODER,DECODER",
        latent_channels=None if decoder is None else decoder.channels,
        stride=None if decoder is None else decoder.upscale,
        arguments={**shared, **weights.arguments},
    )


def _told(config: MARConfig) -> str:
    """The fields of a configuration that are not the constructor's defaults."""
    default = MARConfig()
    return ", ".join(
        f"{name} {value}"
        for name, value in dataclasses.asdict(config).items()
        if value != getattr(default, name)
    ) or "all defaults"  # fmt: skip


def _source(weights: Weights) -> Source:
    return Source(
        weights.path.name,
        files_sha256(weights.files),
        weights.kind,
        plain(weights.key, 200) or None,
    )


def weights_sha256(path: Path) -> str:
    """Return the SHA-256 of weights as a bundle's `sources` have it.

    Raises:
        WeightsError: there are none.
        OSError: they cannot be read.
    """
    return files_sha256(WeightFiles.find(path).forms)


def files_sha256(files: Iterable[Path]) -> str:
    """SHA-256 of a file; of several, that of the lines `SHA-256  name` in order of name."""
    hashes = {path.name: file_sha256(path) for path in files}
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
