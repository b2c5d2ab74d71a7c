"""`python -m csd.tools.gpu_check`: everything that needs a GPU, part by part.

| part | does | needs |
| --- | --- | --- |
| `machine` | says what is here | nothing |
| `kernels` | builds the kernels for this device; bandwidth of each against a device copy | nvcc, cuda-core |
| `tests` | the tests marked `gpu`, the kernels' once more under compute-sanitizer | a checkout, pytest |
| `engines` | builds the engines of a copy of the bundle | tensorrt or tensorrt-rtx |
| `parity` | every graph of every backend against ONNX Runtime's CPU provider | a backend |
| `bench` | `csd-bench` with every backend, beside PyTorch in float32, bfloat16 and compiled | a backend |

What a part needs and does not find is written down as skipped, with the remedy, and the next one
goes on. The exit code is 1 where a part failed.
"""  # noqa: E501

from __future__ import annotations

if __name__ == "__main__":  # within the frame before anything heavy is imported
    from ...runtime.entry import enter_module

    raise SystemExit(enter_module(__spec__.name))

import argparse
import importlib.util
import json
import shutil
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...export.cli import main as export
from ...runtime.backends import BackendOptions, obstacles
from ...runtime.bundle.bundle import Bundle
from ...runtime.bundle.manifest_checks import ENGINE_BACKENDS, ENGINE_PRECISIONS
from ...runtime.cli import add_verify_argument, open_bundle
from ...runtime.command.files import partial_directory, write_json
from ...runtime.command.parser import Parser, parse_list, run_command
from ...runtime.device import find_device
from ...runtime.errors import CsdError
from ...runtime.options import GenerateOptions
from ..bench.baselines import check_baselines, target_weights
from ..bench.cases import BASELINES
from ..bench.cli import main as bench
from ..console import results_console
from ..machine import describe_machine, gpu_state
from ..option_values import COUNT, GUIDANCE
from ..outputs import result_files
from . import kernels, parity, suite
from .part import Outcome, Skipped, device_or_skip

PARTS = ("machine", "kernels", "tests", "engines", "parity", "bench")
# Calls are recorded as CUDA graphs the second time they are made.
WARM_UPS = 3


def build_parser() -> Parser:
    """Return the command-line parser."""
    parser = Parser(
        prog="python -m csd.tools.gpu_check",
        description="Check and measure csd on this machine's GPU. What is missing is skipped.",
        example="python -m csd.tools.gpu_check bundle --out gpu",
    )
    parser.add_argument("bundle", type=Path, help="directory that csd-export wrote")
    parser.add_argument("--out", type=Path, required=True, help="directory of all results")
    parser.add_argument("--parts", default=",".join(PARTS), help="which parts, with commas between")
    parser.add_argument(
        "--precision", help="of the engines, as csd-export takes it (default: all of the bundle)"
    )
    parser.add_argument(
        "--target-weights",
        type=Path,
        help="weights for the PyTorch baselines (default: the zoo's, or the file of their name "
        "that lies here)",
    )
    add_verify_argument(parser)
    parser.add_argument("--repeats", type=COUNT, default=9, help="timed runs of each mode")
    parser.add_argument("--cfg", type=GUIDANCE, default=1.0, help="guidance scale of the bench")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts; returns the exit code."""
    return run_command(run, build_parser(), argv)


def run(args: argparse.Namespace) -> int:
    """Run the parts that were asked for, and write `gpu_check.json` after each."""
    wanted = parse_list("parts", args.parts, str, known=PARTS)
    if args.precision is not None:
        parse_list("precision", args.precision, str, known=ENGINE_PRECISIONS)
    bundle = open_bundle(args)
    (figures,) = result_files(args.out, ["gpu_check.json"], {"the bundle": args.bundle})
    console = results_console()
    does: dict[str, Callable[[], Outcome]] = {
        "machine": lambda: _machine(bundle),
        "kernels": lambda: kernels.check(args.out / "kernels"),
        "tests": lambda: suite.check(args.out, args.out / "kernels"),
        "engines": lambda: _engines(bundle, args.out, args.precision),
        "parity": lambda: parity.check(_own_copy(bundle, args.out)),
        "bench": lambda: _bench(_own_copy(bundle, args.out), args),
    }
    report: dict[str, Any] = {}
    for part in wanted:
        console.print(f"{part} ..", soft_wrap=True)
        outcome = _guarded(does[part])
        reason = f": {outcome.reason}" if outcome.reason else ""
        report[part] = outcome.to_dict()
        write_json(figures, report)
        console.print(f"{part}: {outcome.status}{reason}", soft_wrap=True)
    console.print(f"figures: {figures}", soft_wrap=True)
    return int(any(part["status"] == "failed" for part in report.values()))


def _guarded(part: Callable[[], Outcome]) -> Outcome:
    """Run a part; whatever goes wrong there must not stop the next one."""
    try:
        return part()
    except Skipped as reason:
        return Outcome("skipped", str(reason))
    except CsdError as error:
        return Outcome("failed", str(error))
    except Exception as error:  # a library's own, which is what such a check is there to find
        return Outcome("failed", f"{type(error).__name__}: {error}", {"trace": _trace()})


def _trace() -> list[str]:
    return traceback.format_exc().splitlines()


def _machine(bundle: Bundle) -> Outcome:
    found = obstacles(bundle.path, bundle.manifest, BackendOptions())
    details = {
        "bundle": bundle.identity(), **describe_machine(), "gpu": gpu_state(), "obstacles": found,
    }  # fmt: skip
    try:
        details["device"] = vars(find_device())
    except CsdError as error:
        return Outcome("skipped", str(error), details)
    return Outcome("passed", "", details)


def _own_copy(bundle: Bundle, out: Path) -> Bundle:
    """The copy of the bundle that gets this machine's engines and kernels."""
    folder = out / "bundle"
    if not folder.exists() or _graph_files(Bundle.open(folder)) != _graph_files(bundle):
        with partial_directory(folder) as partial:
            shutil.copytree(bundle.path, partial, dirs_exist_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
    if (out / "kernels").is_dir():
        shutil.copytree(out / "kernels", folder / "kernels", dirs_exist_ok=True)
    return Bundle.open(folder)


def _graph_files(bundle: Bundle) -> dict[str, str]:
    manifest = bundle.manifest
    every = manifest.tables.values()
    return {k: v for graphs in every for graph in graphs.values() for k, v in graph.files.items()}


def _engines(bundle: Bundle, out: Path, precision: str | None) -> Outcome:
    device_or_skip()
    here = [name for name in ENGINE_BACKENDS if importlib.util.find_spec(name) is not None]
    if not here:
        raise Skipped("neither library is installed: pip install tensorrt-rtx or tensorrt")
    copy = _own_copy(bundle, out)
    wanted = precision or ",".join(copy.manifest.precisions)
    codes = {
        name: export(["--rebuild", str(copy.path), "--backend", name, "--precision", wanted])
        for name in here
    }
    built = [vars(engine) for engine in Bundle.open(copy.path).manifest.engines]
    details = {"exit_codes": codes, "engines": built}
    failed = [name for name, code in codes.items() if code]
    if failed:
        return Outcome("failed", f"no engines of {', '.join(failed)}: see the lines above", details)
    return Outcome("passed", "", details)


def _bench(bundle: Bundle, args: argparse.Namespace) -> Outcome:
    device_or_skip()
    manifest = bundle.manifest
    found = obstacles(bundle.path, manifest, BackendOptions())
    backends = [name for name, reason in found.items() if reason is None]
    weights, obstacle = _weights_of_baselines(bundle, args.target_weights)
    modes = [*(BASELINES if weights else ()), "target"]
    if "draft" in manifest.models:
        modes += ["draft", "csd"]
    heads = "sequential,auto"
    if manifest.target.solved:  # no densities to accept by, and engines for a solver's few steps
        modes, heads = [mode for mode in modes if mode != "csd"], "auto"
    gamma = min(GenerateOptions().gamma, manifest.max_gamma)
    details: dict[str, Any] = {"obstacles": found, "modes": modes, "exit_codes": {}}
    if obstacle:
        details["no_baselines"] = obstacle
    for backend in backends:
        file = args.out / f"bench-{backend}.json"
        argv = [
            str(bundle.path), "--backend", backend, "--repeats", str(args.repeats),
            "--warm-ups", str(WARM_UPS), "--modes", ",".join(modes),
            "--heads", heads, "--gammas", str(gamma),
            "--cfg", str(args.cfg), "--eager-device", "cuda", "--json", str(file),
        ]  # fmt: skip
        argv += ["--target-weights", str(weights)] if weights else []
        details["exit_codes"][backend] = code = bench(argv)
        if code == 0:
            details[backend] = json.loads(file.read_text(encoding="utf-8"))
    failed = [name for name, code in details["exit_codes"].items() if code]
    if failed:
        return Outcome("failed", f"csd-bench failed with {', '.join(failed)}", details)
    return Outcome("passed", "", details)


def _weights_of_baselines(bundle: Bundle, given: Path | None) -> tuple[Path | None, str]:
    """The target's weights for PyTorch on this GPU, or None and the reason."""
    try:
        check_baselines(BASELINES, "cuda")
        return target_weights(bundle, BASELINES, given), ""
    except CsdError as error:
        return None, str(error)
