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

import argparse
import json
import shutil
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ...export.cli import main as export
from ...runtime.backends import BackendOptions, obstacles
from ...runtime.bundle import Bundle
from ...runtime.cli_support import Parser, run_command
from ...runtime.device import find_device
from ...runtime.errors import CsdError, OptionError
from ...runtime.files import write_json
from ..bench_cli import main as bench
from ..machine import describe_machine, gpu_state
from . import kernels, parity, suite
from .part import Outcome, Skipped, device_or_skip

PARTS = ("machine", "kernels", "tests", "engines", "parity", "bench")
ENGINE_LIBRARIES = ("tensorrt", "tensorrt_rtx")


def build_parser() -> argparse.ArgumentParser:
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
        "--precision", default="fp16,fp32", help="of the engines, as csd-export takes it"
    )
    parser.add_argument("--repeats", type=int, default=9, help="timed runs of each mode")
    parser.add_argument("--cfg", type=float, default=1.0, help="guidance scale of the bench")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts; returns the exit code."""
    return run_command(run, build_parser(), argv)


def run(args: argparse.Namespace) -> int:
    """Run the parts that were asked for, and write `gpu_check.json` after each."""
    wanted = [part.strip() for part in args.parts.split(",") if part.strip()]
    unknown = [part for part in wanted if part not in PARTS]
    if unknown or not wanted:
        raise OptionError(f"parts is {args.parts!r}: give some of {', '.join(PARTS)}")
    if args.repeats < 1:
        raise OptionError(f"repeats is {args.repeats}: give at least 1")
    args.out.mkdir(parents=True, exist_ok=True)
    bundle = Bundle.open(args.bundle)
    console = Console(highlight=False, markup=False)
    does: dict[str, Callable[[], Outcome]] = {
        "machine": lambda: _machine(bundle),
        "kernels": lambda: kernels.check(args.out / "kernels"),
        "tests": lambda: suite.check(args.out),
        "engines": lambda: _engines(bundle, args.out, args.precision),
        "parity": lambda: parity.check(_own_copy(bundle, args.out)),
        "bench": lambda: _bench(_own_copy(bundle, args.out), args),
    }
    report: dict[str, Any] = {}
    for part in wanted:
        console.print(f"{part} ..")
        outcome = _guarded(does[part])
        console.print(f"{part}: {outcome.status}" + (f": {outcome.reason}" * bool(outcome.reason)))
        report[part] = outcome.to_dict()
        write_json(args.out / "gpu_check.json", report)
    console.print(f"figures: {args.out / 'gpu_check.json'}")
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
    details = {**describe_machine(), "gpu": gpu_state(), "obstacles": found}
    try:
        details["device"] = vars(find_device())
    except CsdError as error:
        return Outcome("skipped", str(error), details)
    return Outcome("passed", "", details)


def _own_copy(bundle: Bundle, out: Path) -> Bundle:
    """The copy of the bundle that gets this machine's engines."""
    folder = out / "bundle"
    if not folder.exists():
        shutil.copytree(bundle.path, folder)
    return Bundle.open(folder)


def _engines(bundle: Bundle, out: Path, precision: str) -> Outcome:
    device_or_skip()
    folder = _own_copy(bundle, out).path
    results: dict[str, Any] = {}
    for library in ENGINE_LIBRARIES:
        argv = ["--rebuild", str(folder), "--backend", library, "--precision", precision]
        results[library] = export(argv)
    engines = [vars(engine) for engine in Bundle.open(folder).manifest.engines]
    details = {"exit_codes": results, "engines": engines}
    if not engines:
        return Outcome("skipped", "neither library built engines: see the lines above", details)
    return Outcome("passed", "", details)


def _bench(bundle: Bundle, args: argparse.Namespace) -> Outcome:
    device_or_skip()
    found = obstacles(bundle.path, bundle.manifest, BackendOptions())
    backends = [name for name, reason in found.items() if reason is None]
    details: dict[str, Any] = {"obstacles": found, "exit_codes": {}}
    for backend in backends:
        file = args.out / f"bench-{backend}.json"
        argv = [
            str(bundle.path), "--backend", backend, "--repeats", str(args.repeats),
            "--modes", "eager,eager-bf16,compile,target,draft,csd", "--heads", "sequential,auto",
            "--gammas", "8", "--cfg", str(args.cfg), "--eager-device", "cuda", "--json", str(file),
        ]  # fmt: skip
        code = bench(argv)
        if code:  # PyTorch has no CUDA here: the runtime alone
            argv[argv.index("--modes") + 1] = "target,draft,csd"
            code = bench(argv)
        details["exit_codes"][backend] = code
        if file.is_file():
            details[backend] = json.loads(file.read_text(encoding="utf-8"))
    failed = [name for name, code in details["exit_codes"].items() if code]
    if failed:
        return Outcome("failed", f"csd-bench failed with {', '.join(failed)}", details)
    return Outcome("passed", "", details)


if __name__ == "__main__":
    raise SystemExit(main())
