"""The arguments of `csd-export`: their parser, and which of them go together."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..models.families import presets
from ..models.zoo import ZOO
from ..runtime.backends.onnx_runtime import PRECISIONS as ON_CPU
from ..runtime.bundle import offers
from ..runtime.bundle.manifest_checks import ENGINE_PRECISIONS, PRECISIONS
from ..runtime.command.files import STDOUT, output_path
from ..runtime.command.line.completion import completes, one_of, some_of
from ..runtime.command.line.effects import Effect, refuse_without_effect
from ..runtime.command.parser import Parser, parse_list
from ..runtime.command.text import listed, shown
from ..runtime.errors import ExportError
from ..runtime.head.draft import ROW_COST
from .engines.builder import BACKENDS
from .profiles import ProfileChange, parse_change
from .request import RANGES, check_number, check_row_cost

# What says how to export, and has no meaning for a bundle that is there.
_EXPORT_ONLY = (
    "zoo", "target", "target_config", "target_heads", "draft", "draft_config", "draft_heads",
    "decoder", "weights", "class_names", "head_steps", "max_batch", "max_gamma",
    "calibration_tokens", "row_cost", "head_chain", "local_steps", "plugins",
)  # fmt: skip
# What --rebuild and --slim BUNDLE do not take besides.
_NOT_REBUILT = ("out", "force", "slim", "slim_for")
_NOT_SLIMMED = ("precision", "sm", "profile", "rebuild")
_NOT_SEALED = (*_NOT_REBUILT, *_NOT_SLIMMED, "backend")
# What a configuration is called that is read off the weights.
AUTO = "auto"
_OWN = ("target_config", "draft", "draft_config", "decoder", "weights", "target_heads",
        "draft_heads", "class_names")  # fmt: skip
DEFAULTS = {"max_batch": 8, "max_gamma": 32, "row_cost": ROW_COST}
CALIBRATION_TOKENS = 2048


# When options of an export have an effect.
_EFFECTS: tuple[Effect[argparse.Namespace], ...] = (
    Effect(
        ("max_gamma",), lambda args: bool(args.zoo or args.draft),
        "nothing is drafted without a draft", "give --draft and --draft-config",
    ),
    Effect(
        ("row_cost",), lambda args: args.calibration_tokens != 0,
        "nothing is fitted on no tokens", "give --calibration-tokens above 0",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class EngineOptions:
    """What the options say of precisions and engines.

    Attributes:
        backends: libraries that build engines.
        targets: compute capabilities for TensorRT for RTX, as 86; empty is its default.
        precisions: of the engines, or of the graphs where no engines are built; empty where the
            bundle to rebuild decides.
        profile: ranges of dimensions that differ from the default.
    """

    backends: tuple[str, ...]
    targets: tuple[int, ...]
    precisions: tuple[str, ...]
    profile: tuple[ProfileChange, ...]


def build_parser() -> Parser:
    """Return the command-line parser."""
    parser = Parser(
        prog="csd-export",
        description="Export a target and a draft model to a bundle that the torch-free runtime "
        "reads, check every graph against PyTorch, and build engines for GPUs; or build engines "
        "for a bundle that is there, or write its slim form.",
        example="csd-export --zoo fashion-mnist --out bundle",
        lower="--max-batch, --max-gamma or --calibration-tokens",
    )
    add = parser.group("models").add_argument
    zoo = add(
        "--zoo", help="a shipped pair: fashion-mnist (default: the models of the options below)"
    )
    completes(zoo, one_of(ZOO))
    configs = f"JSON file, {AUTO} (read off the weights) or {', '.join(presets())}"
    for role, none in (("target", "that of --zoo"), ("draft", "that of --zoo, or no draft")):
        add(f"--{role}", type=Path,
            help=f"weights of the {role}: .pth, .safetensors, an index of shards or a folder "
            f"(default: {none})")  # fmt: skip
        config = add(f"--{role}-config",
            help=f"configuration of the {role}: {configs} (default: {none})")  # fmt: skip
        completes(config, one_of((AUTO, *presets())))
        add(f"--{role}-heads", metavar="ENCODER,DECODER", help=f"heads of attention of the {role}, "
            f"for --{role}-config {AUTO}; one number for both (default: those of its size)"
            )  # fmt: skip
    add("--weights", metavar="ema|model|KEY", help="which weights to take of a file with several: "
        "averages, the model's or those of a key; target=ema,draft=model for one alone (default: "
        "averages where there are any)")  # fmt: skip
    add("--decoder", type=Path, help="weights of the KL decoder (kl16.ckpt) (default: none; a "
        "latent model's bundle then makes latents only)")  # fmt: skip
    add("--class-names", type=Path, metavar="FILE", help="names of the classes, a line each or "
        "JSON; none for no names (default: ImageNet's for 1000 classes, those of --zoo, "
        "or none)")  # fmt: skip
    add = parser.group("bundle").add_argument
    add("--out", type=output_path, help="directory of the bundle (default: none; --rebuild has "
        "its own)")  # fmt: skip
    add("--force", action="store_true", help="replace a bundle that is there (default: it stays)")
    add("--head-steps", type=int, help="default number of head steps, and the most that engines "
        "take (default: the target's num_sampling_steps)")  # fmt: skip
    add("--max-batch", type=int, help=f"images in one call at most {_default('max_batch')}")
    add("--max-gamma", type=int, help=f"AR steps drafted at most {_default('max_gamma')}")
    add("--calibration-tokens", type=int, help="tokens that the fast head samplers are fitted on, "
        f"0 = none (default: {CALIBRATION_TOKENS}; none for a model whose head has a "
        "solver)")  # fmt: skip
    add("--row-cost", type=float, help="what a row of the head costs in units of a call where the "
        "bundle will run, less on a GPU: windows of the speculative head follow from it "
        f"{_default('row_cost')}")  # fmt: skip
    add("--local-steps", action="store_true", help="with the graphs of local AR steps, for "
        "--refresh; they share the backbone's weights, but engines do not (default: without)"
        )  # fmt: skip
    add("--head-chain", action="store_true",
        help="with a graph of the head's whole sequential chain (default: without)")  # fmt: skip
    add("--plugins", action="store_true",
        help="with the operators of csd.plugins as graphs (default: without)")  # fmt: skip
    slim = add("--slim", nargs="?", type=Path, const=True, metavar="BUNDLE",
        help="with one precision and what one target needs only: of what is exported, or in place "
        "of exporting of this bundle; needs no PyTorch then (default: with all)")  # fmt: skip
    add("--for", dest="slim_for", metavar="PRECISION,TARGET", help="what the slim form of BUNDLE "
        "is for: cpu, or a GPU's compute capability, as fp16,sm_89 (default: none)")  # fmt: skip
    add("--seal", type=Path, metavar="BUNDLE", help="in place of exporting: take "
        "libcsd_plugins.so and kernels that were built into this bundle into its manifest, without "
        "which they are not loaded (default: none)")  # fmt: skip
    add("--sign", type=Path, metavar="KEY", help="sign the bundle with this Ed25519 key, for "
        "--require-signature; with --seal one that is there (default: not signed)")  # fmt: skip
    add = parser.group("engines").add_argument
    rebuild = add(
        "--rebuild", type=Path, metavar="BUNDLE", help="build engines for this bundle in place of "
        "exporting; needs no PyTorch (default: none; export)",
    )  # fmt: skip
    backend = add(
        "--backend", help=f"build engines with these: {', '.join(BACKENDS)} (default: no engines)"
    )
    precision = add(
        "--precision", help=f"of engines, or of graphs without --backend: {', '.join(PRECISIONS)} "
        "(default: fp16 with --backend, else fp32, which is always there; with --rebuild the first "
        "of these that the bundle has graphs for)",
    )  # fmt: skip
    add("--sm", help="compute capabilities for tensorrt_rtx, an engine each, as 75,86,120 "
        "(default: one engine for 8.0, 8.6, 8.9 and 12.0)")  # fmt: skip
    profile = add(
        "--profile", action="append", metavar="GRAPH.DIM=A:B:C",
        help="range of a dimension in engines: least, typical, most; may be repeated "
        "(default: what the runtime calls for)",
    )  # fmt: skip
    for folder in (rebuild, slim):
        completes(folder, offers.bundles)
    completes(backend, some_of(BACKENDS))
    completes(precision, some_of(PRECISIONS))
    completes(profile, offers.graphs)
    return parser


def _default(name: str) -> str:
    return f"(default: {DEFAULTS[name]})"


def check_arguments(args: argparse.Namespace) -> None:
    """Check which arguments are given together, and fill in defaults.

    Raises:
        ExportError: names the one that is missing, too many, or out of range.
    """
    if args.seal is not None:
        _refuse(args, (*_EXPORT_ONLY, *_NOT_SEALED), "--seal")
        return
    if args.rebuild is not None:
        _refuse(args, (*_EXPORT_ONLY, *_NOT_REBUILT), "--rebuild")
        if not args.backend:
            raise ExportError(f"--rebuild needs --backend: give {' or '.join(BACKENDS)}")
        return
    if args.out == STDOUT:
        raise ExportError("--out is -: a bundle is a directory, give its path")
    if slims_a_bundle(args):
        _refuse(args, (*_EXPORT_ONLY, *_NOT_SLIMMED), "--slim BUNDLE")
        if args.slim_for is None:
            raise ExportError(
                "--slim BUNDLE needs --for: give a precision and a target, as --for fp16,sm_89"
            )
    elif args.slim_for is not None:
        raise ExportError("--for needs --slim BUNDLE: give both")
    if args.out is None:
        raise ExportError(
            "give --out DIRECTORY for the bundle, or --rebuild BUNDLE" if args.slim is None
            else "--slim needs --out: give the directory of the slim bundle"
        )  # fmt: skip
    if slims_a_bundle(args):
        return
    if args.slim is not None:
        _refuse(args, ("head_chain", "plugins"), "--slim")
    if bool(args.zoo) == bool(args.target):
        raise ExportError("give either --zoo NAME or --target FILE with --target-config")
    extra = next((name for name in _OWN if getattr(args, name)), None)
    if args.zoo and extra:
        raise ExportError(f"{_option(extra)} does not go with --zoo: leave it out")
    for role in ("target", "draft"):
        weights, config = getattr(args, role), getattr(args, f"{role}_config")
        if bool(weights) != bool(config):
            raise ExportError(
                f"--{role} and --{role}-config go together: give both (--{role}-config {AUTO} "
                "reads it off the weights)"
            )
        if head_counts(role, getattr(args, f"{role}_heads")) and config != AUTO:
            raise ExportError(f"--{role}-heads goes with --{role}-config {AUTO}: leave it out")
    for role in _named_roles(args.weights):
        if not getattr(args, role):
            raise ExportError(
                f"--weights has {role}=, and there is no --{role}: leave it out, or give --{role}"
            )
    for name, value in DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    for name in RANGES:
        if getattr(args, name) is not None:
            check_number(name, getattr(args, name))
    check_row_cost(args.row_cost)
    check_effects(args)


def check_effects(args: argparse.Namespace) -> None:
    """Refuse options that were given and change nothing.

    Raises:
        OptionError: see `refuse_without_effect`.
    """
    refuse_without_effect(args.given, _EFFECTS, [args])


def _named_roles(text: str | None) -> list[str]:
    """The models whose weights `--weights` speaks of by name."""
    weights_by_role(text)
    entries = text.split(",") if text is not None else ()
    return [entry.split("=")[0].strip() for entry in entries if "=" in entry]


def weights_by_role(text: str | None) -> dict[str, str]:
    """Read `--weights`: which weights to take for `target`, `draft` and `decoder`.

    A choice without a role is for target and draft.

    Raises:
        ExportError: an entry is empty, or is for something else.
    """
    wanted: dict[str, str] = {}
    for entry in text.split(",") if text is not None else ():
        role, is_for, choice = (part.strip() for part in entry.rpartition("="))
        roles = (role,) if is_for else ("target", "draft")
        if not choice or not set(roles) <= {"target", "draft", "decoder"}:
            raise ExportError(
                f"weights has {shown(entry)}: give ema, model or a key of the file, or "
                "target=ema, draft=model or decoder=KEY with commas between"
            )
        wanted.update(dict.fromkeys(roles, choice))
    return wanted


def head_counts(role: str, text: str | None) -> tuple[int, int] | None:
    """Read `--target-heads` or `--draft-heads`: heads of the encoder and of the decoder.

    Raises:
        ExportError: it is not one or two whole numbers.
    """
    if text is None:
        return None
    counts = [part.strip() for part in text.split(",")]
    if len(counts) > 2 or not all(c.isascii() and c.isdecimal() and len(c) < 5 for c in counts):
        raise ExportError(f"{role}-heads is {shown(text)}: give two whole numbers, as 12,16")
    return int(counts[0]), int(counts[-1])


def slims_a_bundle(args: argparse.Namespace) -> bool:
    """Whether the slim form of a bundle that is there was asked for."""
    return isinstance(args.slim, Path)  # True is of what is exported


def _refuse(args: argparse.Namespace, names: Sequence[str], what: str) -> None:
    extra = next((name for name in names if getattr(args, name) not in (None, False)), None)
    if extra:
        raise ExportError(f"{_option(extra)} does not go with {what}: leave it out")


def engine_options(args: argparse.Namespace) -> EngineOptions:
    """Read the options about precisions and engines.

    Raises:
        OptionError: a list is empty, or a value of it is not known.
        ExportError: options do not go together.
    """
    backends = _names("backend", args.backend, BACKENDS)
    precisions = _names("precision", args.precision, PRECISIONS)
    if backends and (extra := [name for name in precisions if name not in ENGINE_PRECISIONS]):
        raise ExportError(
            f"{extra[0]} graphs are for ONNX Runtime on the CPU, and --backend builds engines: "
            "give --precision fp16, or leave out --backend and build engines later with --rebuild"
        )
    if args.sm is not None and not backends:
        raise ExportError("--sm needs --backend tensorrt_rtx: give both")
    sms = _sms(args.sm)
    changes = tuple(parse_change(text) for text in args.profile or ())
    if args.rebuild is None:
        precisions = precisions or (("fp16",) if backends else ("fp32",))
    if args.slim is not None:
        _check_slim(backends, sms, precisions)
    return EngineOptions(backends, sms, precisions, changes)


def one_backend(args: argparse.Namespace) -> str | None:
    """Read --backend where one at most may be given.

    Raises:
        OptionError: it is not known.
        ExportError: there are several.
    """
    backends = _names("backend", args.backend, BACKENDS)
    if len(backends) > 1:
        raise ExportError("--slim takes one backend: give one --backend")
    return next(iter(backends), None)


def _check_slim(backends: Sequence[str], targets: Sequence[int], precisions: Sequence[str]) -> None:
    """Check that what is exported is one precision for one target."""
    for name, values in (("precision", precisions), ("backend", backends), ("sm", targets)):
        if len(values) > 1:
            raise ExportError(f"--slim takes one {name}, not {len(values)}: give one --{name}")
    if not backends and precisions[0] not in ON_CPU:
        raise ExportError(
            f"--slim without engines is for the CPU, which runs {listed(ON_CPU)}: give one "
            "of them as --precision, or --backend too"
        )


def _names(option: str, text: str | None, known: Sequence[str]) -> tuple[str, ...]:
    return () if text is None else tuple(parse_list(option, text, str, known))


def _sms(text: str | None) -> tuple[int, ...]:
    return () if text is None else tuple(parse_list("sm", text, _sm))


def _sm(text: str) -> int:
    if not text.isdecimal() or len(text) > 4:
        raise argparse.ArgumentTypeError(
            f"{shown(text)} is no number such as 86, for compute capability 8.6"
        )
    return int(text)


def _option(name: str) -> str:
    return "--for" if name == "slim_for" else f"--{name.replace('_', '-')}"
