"""Bad command lines: every option at nasty values, options that lack or contradict, wrong files."""

from __future__ import annotations

import argparse
import importlib
import itertools
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from .. import nasty
from ..helpers import DATA
from .answers import AT_WORK, Answer, Case, Main, ask, own_folder, tree
from .place import FAST, Place, no_work

# Values of each option, and wrong files, that a quick run tries, of all that there are.
QUICK_VALUES, QUICK_FILES = 1, 4


@dataclass(frozen=True)
class Command:
    """A command and a command line that it takes.

    Attributes:
        module: that has its `main`.
        parser: the module that has its `build_parser`.
        argv: options that are taken, each as `--name=value`; `{}` is the bundle.
    """

    module: str
    parser: str
    argv: tuple[str, ...]

    @classmethod
    def of(cls, module: str, *argv: str, parser: str = "") -> Command:
        return cls(module, parser or module, argv)

    @property
    def main(self) -> Main:
        return importlib.import_module(self.module).main

    def build_parser(self) -> argparse.ArgumentParser:
        return importlib.import_module(self.parser).build_parser()

    def ready(self, place: Place) -> list[str]:
        """The command line that it takes."""
        models = place.models() if "export" in self.module else []
        return [*models, *(part.replace("{}", str(place.bundle)) for part in self.argv)]


FAST_BENCH = ("--modes=target", "--repeats=1", "--warm-ups=0", "--fewer-steps=0", "--num-iter=2",
              "--head-steps=2", "--threads=1")  # fmt: skip
COMMANDS = {
    "csd": Command.of("csd.tools.front.cli"),
    "csd-generate": Command.of("csd.runtime.cli", "{}", "--labels=1", "--quiet", *FAST),
    "csd-export": Command.of("csd.export.cli", "--out=bundle", parser="csd.export.arguments"),
    "csd-bench": Command.of("csd.tools.bench.cli", "{}", *FAST_BENCH),
    "csd-eval": Command.of("csd.tools.eval.cli"),
    "csd-doctor": Command.of("csd.tools.doctor.cli", "{}"),
    "csd-inspect": Command.of("csd.tools.inspect.cli", "{}"),
    "eval run": Command.of("csd.tools.eval.commands.run", "{}", "--name=x", "--threads=1",
                           "--quiet", "--num-iter=2", "--head-steps=2"),
    "eval compare": Command.of("csd.tools.eval.commands.compare", "a", "b", "--quiet"),
    "eval gate": Command.of("csd.tools.eval.commands.gate", "--baseline=a", "--candidate=b",
                            "--quiet"),
    "eval history": Command.of("csd.tools.eval.commands.history", "--quiet"),
    "eval merge": Command.of("csd.tools.eval.commands.merge", "x.db"),
    "eval certify": Command.of("csd.tools.eval.commands.certify", "{}", "--threads=1", "--quiet"),
    "eval tune": Command.of("csd.tools.eval.commands.tune", "{}", "--threads=1", "--quiet",
                            "--num-iter=2", "--head-steps=2", "--real=none"),
    "demo": Command.of("csd.tools.demo", "--out=out"),
    "random_model": Command.of("csd.tools.random_model", "--config=mar_base", "--out=out"),
    "gpu_check": Command.of("csd.tools.gpu_check.__main__", "{}", "--out=out"),
    "head_curve": Command.of("csd.tools.measure.head_curve", "{}", "--threads=1"),
    "head_fidelity": Command.of("csd.tools.measure.head_fidelity", "{}", "--threads=1"),
    "profile": Command.of("csd.tools.measure.profile", "{}", "--threads=1"),
    "stream": Command.of("csd.tools.measure.stream", "{}", "--threads=1", "--images=1"),
    "zoo_eval": Command.of("csd.tools.measure.zoo_eval", "{}", "--threads=1"),
    "training": Command.of("csd.models.training.__main__", "draft", "--out=out"),
}  # fmt: skip

# Command lines as a whole; `{}` is the bundle, `{t}` weights, `{c}` their configuration.
TARGET = "--target={t} --target-config={c}"
WHOLE = {
    "csd": ("", "wat", "--wat", "-1", "generate", "generate --wat", "eval", "eval wat", "eval run",
            "--log-level=debug bench", "generat {} --labels=1", "generate {} --labels=1 --gamma=8"),
    "csd-generate": (
        "", "{}", "--labels=1", "{} --labels", "{} {} --labels=1", "{} --labels=1 extra",
        "{} --labels=1 --wat", "{} --labels=1 -x", "{} --labels=1 --mode=fast",
        "{} --labels=1 --seed=1 --seed=-1", "{} --labels=1 --out=a --stats=a",
        "{} --labels=1 --out=- --stats=-", "{} --labels=1 --out=a --save-latents=./a",
        "{} --labels=1 --out={}/manifest.json", "{} --labels=1 --stats={}/new",
        "{} --labels=1 --out-dir={}/manifest.json", "{} --labels=1 --memory-limit=100",
        "{} --labels=1 --backend=tensorrt", "{} --labels=1 --backend=tensorrt_rtx",
        "{} --labels=1 --precision=fp16", "{} --labels=all,1", "{} --labels=1 --head-steps=2:3:4",
        "{} --labels=1 --num-iter=17", "{} --labels=1 --gamma=33 --mode=csd",
        "{} --labels=1 --he=sequential", "-- {} --labels=1", "{}/ --labels=99",
        "{}/manifest.json --labels=1", "gone --labels=1", ". --labels=1", "/ --labels=1",
        "{} --labels=1 --refresh=2", "{} --labels=1 --refresh=0", "{} --labels=1 --refresh=2:",
        "{} --labels=1 --refresh=often", "{} --labels=1 --refresh-tolerance=0",
        "{} --labels=1 --verify=block", "{} --labels=1 --head-tolerance=0.1",
        "{} --labels=1 --cfg-schedule=linear", "{} --labels=1 --out-dir=x --columns=2",
        "{} --labels=1 --no-cuda-graph --backend=onnxruntime", "{} --labels=1 --log-level=loud",
        "{} --labels=1,,2", "{} --labels=1:2", "{} --labels=10,11", "@file --labels=1",
    ),
    "csd-export": (
        "", "--out=b", "--zoo=fashion-mnist", "--zoo=gone --out=b", "--zoo --out=b",
        f"--zoo=fashion-mnist {TARGET} --out=b", "--target={t} --out=b", "--target-config={c}",
        "--draft={t} --out=b", f"{TARGET} --draft={{t}} --out=b", "extra --out=b",
        f"{TARGET} --draft-config={{c}} --out=b", "--zoo=fashion-mnist --draft={t} --out=b",
        "--zoo=fashion-mnist --decoder={t} --out=b", f"{TARGET} --out=-", f"{TARGET} --out={{}}",
        f"{TARGET} --out={{}} --sm=86", f"{TARGET} --out=b --backend=tensorrt",
        f"{TARGET} --out=b --backend=,", f"{TARGET} --out=b --precision=,", f"{TARGET} --out=",
        f"{TARGET} --out=b --sm=86", f"{TARGET} --out=b --precision=fp8", "--rebuild={}",
        "--rebuild={} --backend=abacus", "--rebuild={} --backend=tensorrt",
        "--rebuild={} --backend=tensorrt_rtx --sm=8.6", "--rebuild=gone --backend=tensorrt",
        "--rebuild={} --out=b --backend=tensorrt", "--rebuild={} --force --backend=tensorrt",
        "--rebuild= --backend=tensorrt", f"{TARGET} --out=b --profile=x",
        f"{TARGET} --out=b --profile=backbone.V=3:2:1", f"{TARGET} --out=b --profile=no.V=1:2:3",
        f"{TARGET} --out=b --profile=backbone.V=0:1:9999", f"{TARGET} --out=/proc/b",
        f"{TARGET} --out={{t}}/b", f"{TARGET} --out=..", f"{TARGET} --out=/", "--wat",
        f"{TARGET} --out=b --head-chain=yes", f"{TARGET} --out=b --local-steps=2",
        f"{TARGET} --out=b --max-gamma=4", f"{TARGET} --out=b --weights=draft=ema",
        f"{TARGET} --out=b --calibration-tokens=0 --row-cost=0.1",
        "--rebuild={} --backend=tensorrt --local-steps", f"{TARGET} --out=b --force --max-batch=0",
    ),
    "csd-bench": (
        "", "gone", "{} {}", "{} --modes=", "{} --modes=fast", "{} --heads=none", "{} --gammas=0",
        "{} --modes=csd --gammas=99", "{} --temperatures=0", "{} --fewer-steps=-1",
        "{} --json=a --plot=a", "{} --json={}/x", "{} --json=gone/x", "{} --plot=x.txt",
        "{} --plot=gone/x.png", "{} --plot=x", "{} --eager-device=tpu", "{} --eager-device=cuda",
        "{} --target-weights=gone", "{} --target-weights={}", "{} --quality-images=5",
        "{} --threads=1,x", "{} --threads=", "{} --seed=-1", "{} --repeats=0", "{} --wat",
        "{} --refresh=2", "{} --refresh=0", "{} --refresh=,", "{} --refresh=1,x",
        "{} --modes=target --gammas=4", "{} --modes=eager --heads=auto",
        "{} --modes=target --eager-device=cpu", "{} --modes=csd --fewer-steps=8",
        "{} --num-iter=99", "{} --head-steps=x", "{} --memory-limit=1", "{} --backend=abacus",
    ),
    "csd-doctor": (
        "", "{} {}", "gone", "{}/manifest.json", "/", "--json={}/x", "{} --json={}/manifest.json",
        "--json {}", "{} --json=gone/x", "{} --json=", "{} --no-run=1", "{} --no-run --wat",
        "{t}", "{} --json=x --json=y", "-- {}", "--json=/proc/x",
    ),
    "csd-inspect": (
        "", "{}", "{} {}", "gone", "{}/manifest.json", "/", "{t}", "{} --graph", "{} --graph=",
        "{} --graph=target", "{} --graph=decoder", "{} --graph=decoder --layers", "{} --layers",
        "{} --graph=decoder --precision=fp16", "{} --precision=fp32", "{} --diff=",
        "{} --diff=gone", "{} --diff={}", "{} --diff={t}", "{} --diff={} --graph=decoder",
        "{} --plot=x.txt", "{} --plot={}/x.png", "{} --plot=x", "{} --json=x --plot=./x",
        "{} --json={}/x", "{} --json=gone/x", "{} --json=-", "{} --wat", "{} --diff={} --json={}/x",
        "--json {}",
    ),
    "csd-eval": ("", "wat", "run", "run --help=1", "run wat", "--db=x", "-1", "run run"),
    "eval run": (
        "", "{}", "--name=x", "{} --name=", "{} --name", "{} --name=a --images=0", "gone --name=x",
        "{} --name=x --images=x", "{} --name=x --batch=0", "{} --name=x --shard=0/2",
        "{} --name=x --shard=3/2", "{} --name=x --shard=1", "{} --name=x --seed=-1",
        "{} --name=x --db=-", "{} --name=x --db=/dev/null", "{} --name=x --db={}/x",
        "{} --name=x --db={}/manifest.json", "{} --name=x --db=gone/x", "{} --name=x --db={}",
        "{} --name=x --db={t}", "{} --name=x --features=gone", "{} --name=x --features={t}",
        "{} --name=x --features={}/target_head_step.onnx", "{} --name=x --features={}",
        "{} --name=x --mode=fast", "{} --name=x --num-iter=99", "{} --name=x --wat",
        "{} --name=x --backend=abacus", "{} --name=x --head=solver", "{} --name=x extra",
    ),
    "eval compare": ("", "a", "a b", "a b --db={t}", "a b --db={}", "a b --html=x --json=x",
                     "a b --html=gone/x", "a b --real=gone", "a b --use=0", "a b --wat", "-- -a b",
                     "a b --db=/dev/null", "a b --show=-1", "a b --show=1",
                     "a b --real=none --real-images=9"),
    "eval gate": ("", "--baseline=a", "--baseline=a --candidate=b", "--max-drop=2%",
                  "--baseline=a --candidate=b --max-drop=0", "--baseline=a --candidate=b --db={t}",
                  "--baseline=a --candidate=b --max-drop=-1%", "--baseline=a --candidate=b extra",
                  "--baseline=a --candidate=b --metric=fid"),
    "eval history": ("", "--metric=fid", "--db={t}", "--plot=x.txt", "--plot=x.png --json=x.png",
                     "--like=x extra"),
    "eval merge": ("", "gone", "{t}", "{t} {t}", "{t} --db={t}", "{}", "gone --db=-"),
    "eval certify": ("", "gone", "{} --tokens=1", "{} --contexts=0", "{} --level=0", "{} extra",
                     "{} --level=1", "{} --json={}/x", "{} --cfg=nan", "{} --backend=abacus"),
    "eval tune": ("", "gone", "{}", "{} --within=0", "{} --budget=5", "{} --budget=0s", "{} extra",
                  "{} --modes=", "{} --modes=fast", "{} --name=a/b", "{} --precisions=fp8",
                  "{} --features=gone", "{} --images=1", "{} --db={}/x", "{} --error=1",
                  "{} --modes=target --verify=prefix", "{} --json={}/x"),
    "demo": ("extra", "--out", "--out={t}", "--repeats=0", "--repeats=x", "--threads=0", "--wat",
             "--out=/proc/x", "--out="),
    "random_model": ("", "--config=mar_base", "--out=x", "--config=gone --out=x",
                     "--config= --out=x",
                     "--config={t} --out=x", "--config={} --out=x", "--config=mar_base --out={t}",
                     "--config={c} --out=x --seed=-1", "--config=mar_base --out=x --roughness=11",
                     "--config=mar_base --out=/proc/x", "--config=/dev/null --out=x"),
    "gpu_check": ("", "{}", "gone --out=x", "{} --out={}", "{} --out={}/x", "{} --out={t}",
                  "{} --out=x --parts=", "{} --out=x --parts=warp", "{} --out=x --precision=fp8",
                  "{} --out=x --repeats=0", "{} --out=x --cfg=0", "{} --out=/proc/x", "--out=x"),
    "head_curve": ("", "gone", "{} --model=both", "{} --tokens=0", "{} --json={}/x", "{} extra",
                   "{} --json=gone/x", "{} --threads=0", "{} --cfg=nan"),
    "head_fidelity": ("", "gone", "{} --gamma=33", "{} --tolerances=", "{} --tolerances=-1",
                      "{} --json={}/x", "{} --images=0"),
    "profile": ("", "gone", "{} --images=0", "{} --head=none", "{} --json={}/manifest.json"),
    "stream": ("", "gone", "{} --images=0", "{} --clock=sun", "{} --json={}/manifest.json"),
    "zoo_eval": ("", "gone", "{}", "{} --scales=", "{} --scales=x", "{} --head=none",
                 "{} --json=a --samples=a", "{} --samples={}/x.png", "{} --data=gone"),
    "training": ("", "both --out=x", "draft", "draft --out=x --steps=0", "draft --out=x --batch=x",
                 "draft --out=x --data=gone", "draft --out={t}", "draft --out=x --device=tpu",
                 "draft --out=x --device=cuda", "draft --out=x --learning-rate=nan",
                 "draft --out=x --seed=-1", "draft --out=/proc/x --data=gone",
                 "classifier --out=x --epochs=0", "classifier --out=x --data=gone",
                 "draft --out=x --threads=0", "draft --out=x --data={}"),
}  # fmt: skip
# Options that name a file or folder that is read; None is the bundle.
READ = {
    "csd-generate": (None,), "csd-bench": (None, "--target-weights"),
    "csd-export": ("--target", "--target-config", "--draft", "--draft-config", "--decoder",
                   "--rebuild"),
    "csd-doctor": (None,), "csd-inspect": (None, "--diff"),
    "eval run": (None, "--features"), "eval certify": (None,),
    "eval tune": (None,),
    "random_model": ("--config",), "gpu_check": (None, "--target-weights"), "profile": (None,),
    "head_curve": (None,), "head_fidelity": (None,), "zoo_eval": (None, "--data"),
    "training": ("--data",),
}  # fmt: skip
WRONG_FILES = {
    "missing": None, "empty": b"", "text": b"hello\n", "list": b"[]", "deep": b"[" * 100_000,
    "picture": b"\x89PNG\r\n\x1a\n" + bytes(64), "random": random.Random(0).randbytes(4096),
    "not UTF-8": b'{"name": "\xff"}', "of null bytes": bytes(4096), "folder": None,
    "loop of links": None, "link to nothing": None,
}  # fmt: skip


def cases(place: Place, everything: bool) -> Iterator[Case]:
    """All bad command lines."""
    yield from _whole(place)
    yield from _wrong_files(place, everything)
    yield from _options(place, everything)


def _whole(place: Place) -> Iterator[Case]:
    words = {"{}": str(place.bundle), "{t}": str(DATA / "target.pth"),
             "{c}": str(place.configs["target"])}  # fmt: skip
    for name, lines in WHOLE.items():
        for line in lines:
            argv = [_filled(part, words) for part in line.split()]
            yield _case(place, name, argv, f"{name} {line}", refused=False)


def _filled(part: str, words: dict[str, str]) -> str:
    for word, value in words.items():
        part = part.replace(word, value)
    return part


def _wrong_files(place: Place, everything: bool) -> Iterator[Case]:
    turn = itertools.cycle(WRONG_FILES.items())
    for name, options in READ.items():
        for option, _ in itertools.product(
            options, range(len(WRONG_FILES) if everything else QUICK_FILES)
        ):
            kind, content = next(turn)
            argv = COMMANDS[name].ready(place)
            file = place.folder / "wrong"
            if option is None:
                argv[argv.index(str(place.bundle))] = str(file)
            elif option == "--rebuild":
                argv = [f"--rebuild={file}", "--backend=tensorrt_rtx"]
            else:
                argv = [part for part in argv if not part.startswith(f"{option}=")]
                argv.append(f"{option}={file}")
            if option == "--target-weights":
                argv = [p for p in argv if not p.startswith(("--modes", "--fewer-steps"))]
                argv += ["--modes=eager"] if name == "csd-bench" else ["--parts=machine"]
            yield _case(place, name, argv, f"{name} {option or 'bundle'} is {kind}",
                        refused=(name, option) != ("gpu_check", "--target-weights"),
                        wrong=(file, kind, content))  # fmt: skip


def _options(place: Place, everything: bool) -> Iterator[Case]:
    """Every option that takes a value at every nasty value; in a quick run at some, in turn."""
    turn = itertools.count()
    for name, command in COMMANDS.items():
        for option in nasty.options(command.build_parser()):
            values = nasty.VALUES
            if not everything:
                values = [values[7 * next(turn) % len(values)] for _ in range(QUICK_VALUES)]
            for value in values:
                ready = [part for part in command.ready(place) if not part.startswith(option + "=")]
                argv = [*ready, f"{option}={value}"]
                yield _case(place, name, argv, f"{name} {option}={value[:30]!r}", refused=False)


def _case(
    place: Place,
    name: str,
    argv: Sequence[str],
    shown: str,
    *,
    refused: bool,
    wrong: tuple[Path, str, bytes | None] | None = None,
) -> Case:
    def fault() -> str | None:
        with ExitStack() as stack:
            if wrong is not None:
                stack.callback(_remove, wrong[0])
                _make_wrong(*wrong)
            folder = stack.enter_context(own_folder(place.folder))
            stack.enter_context(no_work())
            before = tree(place.bundle)
            answer = ask(COMMANDS[name].main, argv)
            left = tree(folder) if answer.code not in (0, AT_WORK) else []
            return _judged(answer, refused, left, before != tree(place.bundle))

    return Case(shown, fault)


def _judged(answer: Answer, refused: bool, left: list[str], altered: bool) -> str | None:
    codes = (2,) if refused else (0, 2, AT_WORK)
    if fault := answer.fault(codes):
        return fault
    if altered:
        return "the bundle was altered"
    return f"left behind: {left}" if left else None


def _make_wrong(file: Path, kind: str, content: bytes | None) -> None:
    if kind == "folder":
        file.mkdir()
    elif kind == "loop of links":
        file.symlink_to(file)
    elif kind == "link to nothing":
        file.symlink_to("gone")
    elif content is not None:
        file.write_bytes(content)


def _remove(file: Path) -> None:
    if file.is_dir() and not file.is_symlink():
        os.rmdir(file)
    else:
        file.unlink(missing_ok=True)
