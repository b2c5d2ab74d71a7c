"""Every command that README and docs show: taken by its parser, and run or marked with the reason.

A block is what is indented by four spaces, or fenced as a shell's. Each of its lines is a command,
or the block stands in `NO_COMMANDS`. Every command of csd is given to its own parser. What no line
of `NOT_RUN` fits is then run, page after page, in a folder with a small bundle. A new block that
neither runs nor is marked fails, and so does a mark that fits nothing any more.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import metadata
from types import ModuleType

import pytest

from csd.export.arguments import check_arguments
from csd.runtime.errors import CsdError
from csd.runtime.libraries.packages import DISTRIBUTION
from csd.tools.eval.cli import COMMANDS
from csd.tools.front.commands import SUBCOMMANDS

from .helpers import ROOT, edit_manifest

PAGES = ["README.md", *sorted(path.relative_to(ROOT).as_posix()
                              for path in (ROOT / "docs").glob("*.md"))]  # fmt: skip
# How a block begins that has no commands, and what it is.
NO_COMMANDS = {
    r"tools ─+►|cli ─► spread|csd-export ─► check": "a drawing",
    r"encoder   rows:|decoder   rows:": "a drawing",
    r"x0hat_": "an equation",
    r"curl -s": "calls of a page that is served; a test of it makes them from Python",
    r"csd-export: error: ": "what a command prints",
    r"(target|decoder)(\.head_step)? \[\w+\] for tensorrt_rtx": "what a command prints",
    r'\{"features":': "a file of JSON",
    r"name: quality": "a workflow; its commands are looked at one by one",
}
# Why a command is not run here. All of csd's are parsed all the same.
NOT_RUN = {
    r"make (demo|test|docs|lint)$": "takes minutes, and runs these tests",
    r"(pip|sudo|apt-get|python3 -m venv|py -m|nvidia-smi|rsync|jq)\b":
        "changes or asks the machine, or is another project's",
    r"\. \.venv|\.venv\\|python -c import tensorrt": "is the machine's",
    r"\.venv/bin/pytest": "runs tests",
    r"docker ": "needs a Docker engine",
    r"csd[- ]demo ": "serves a page until it is stopped; `tests/tools/page/` does that",
    r"csd[- ]export --zoo": "takes a minute: the bundle `zoo_bundle` of the tests is made by it",
    r"csd[- ]export (.* )?--target ": "needs a checkpoint",
    r"csd[- ]export --rebuild .*--backend tensorrt\b": "needs a GPU",
    r"csd[- ]export --slim bundle --for fp16,sm_89": "needs engines",
    r"csd[- ]generate .*--backend tensorrt": "needs a GPU",
    r"csd-generate emigm ": "needs a checkpoint",
    r"csd[- ]generate .*--preset tuned": "needs what `csd-eval tune` finds, which takes minutes",
    r"csd[- ]export --rebuild bundle --backend tensorrt_rtx": "builds engines, for minutes",
    r"csd[- ]doctor\b": "looks at every package, for half a minute",
    r"csd[- ]bench ": "takes minutes",
    r"csd[- ]eval ": "takes minutes",
    r"python -m csd\.tools\.(measure|random_model|gpu_check)": "takes minutes",
    r"python -m csd\.plugins\.build": "needs nvcc",
}  # fmt: skip
# What is run in the place of a command that takes minutes, because others of its page need it.
INSTEAD = {
    "csd-export --zoo fashion-mnist --out bundle --sign key": "csd-export --seal bundle --sign key"
}
# Exit codes beside 0 that are an answer, not a mistake.
ANSWERS = {"csd.tools.inspect.cli": (0, 1)}
# A line that shows what is refused.
REFUSED = "csd generate bundle --labels bag --gamma 8"

# The bundle of a page that needs another than that of local AR steps in all precisions.
OF_PAGE = {"docs/inspect.md": "tiny_bundle"}  # with a calibration

FRONT = {command.name: command.module for command in SUBCOMMANDS}
OPERATORS = {"&&", "||", "|", ";"}


@dataclass(frozen=True)
class Command:
    """A command of a page.

    Attributes:
        page: that shows it.
        words: of it, without comments, redirections and variables that are set before it.
    """

    page: str
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        return " ".join(self.words)

    @property
    def own(self) -> tuple[str, list[str]] | None:
        """The module of a command of csd and its arguments, or None: it is another's."""
        first, *rest = self.words
        if first == "docker" and rest[0] == "run":  # the image's entry point is csd
            (image,) = (i for i, word in enumerate(rest) if word.startswith("csd:"))
            first, rest = "csd", rest[image + 1 :]
        if first in ("python", "python3") and rest[:1] == ["-m"] and rest[1].startswith("csd."):
            return rest[1], rest[2:]
        if first == "csd" and rest[:1] != ["--help"]:
            first, rest = f"csd-{rest[0]}", rest[1:]
        if first == "csd-eval":
            return (f"csd.tools.eval.commands.{rest[0]}", rest[1:]) if rest[0] in COMMANDS else None
        if first == "csd":
            return "csd.tools.front.cli", rest
        return (FRONT[first[4:]], rest) if first[4:] in FRONT else None


def is_command(line: str) -> bool:
    """Whether a line begins with a program that the pages use."""
    programs = r"csd(-\w+)? |csd-doctor$|python3? -[mc] |pip |make \w|sudo |docker |openssl |rsync "
    others = r"nvidia-smi|py -m|\.venv|\. |[A-Z_]+=\S+ |\$ "
    return re.match(programs + "|" + others, line) is not None


def blocks(text: str) -> Iterator[list[str]]:
    """The lines of each block of a page, without its indentation."""
    fence: str | None = None
    block: list[str] = []
    before = ""
    for line in [*text.splitlines(), ""]:
        if line.startswith("```"):
            fence = line[3:] if fence is None else None
            continue
        if fence not in (None, "sh", "bash", "shell", "console"):
            continue
        indented = line.startswith("    ") and (block or not before.strip())
        inside = indented or fence is not None
        if inside:
            block.append(line if fence is not None else line[4:])
        elif block:
            yield block
            block = []
        before = line


def commands(page: str, block: list[str]) -> Iterator[Command]:
    """The commands of a block; `a && b | c` is three."""
    text = "\n".join(block).replace("\\\n", " ")
    lines = text.splitlines()
    if any(line.startswith("$ ") for line in lines):  # with a prompt: the rest is what is printed
        lines = [line for line in lines if line.startswith("$ ")]
    for line in lines:
        found = re.search(r"- run: (.+)", line)
        line = found[1] if found else line.removeprefix("$ ")
        windows = "\\" in line
        lexer = shlex.shlex(line, posix=not windows, punctuation_chars="&|;<>")
        lexer.whitespace_split, lexer.commenters = True, "#"
        yield from (Command(page, part) for part in _simple(list(lexer)))


def _simple(words: list[str]) -> Iterator[tuple[str, ...]]:
    part: list[str] = []
    skip = False
    for word in [*words, ";"]:
        if word in OPERATORS:
            while part and re.fullmatch(r"[A-Z_]+=\S*", part[0]):
                part = part[1:]
            if part:
                yield tuple(part)
            part = []
        elif skip or word in ("<", ">"):
            skip = not skip  # a redirection and its file
        else:
            part.append(word)


@functools.cache
def shown(page: str) -> tuple[Command, ...]:
    """All commands of a page; AssertionError names a block that is neither commands nor known."""
    found: list[Command] = []
    for block in blocks((ROOT / page).read_text(encoding="utf-8")):
        other = any(re.match(start, block[0].strip()) for start in NO_COMMANDS)
        lines = "\n".join(block).replace("\\\n", " ").splitlines()
        prompt = any(line.startswith("$ ") for line in lines)
        if other:
            lines = [line for line in lines if "- run: csd" in line]
        elif not prompt:
            strange = [line for line in lines if line.strip() and not is_command(line)]
            # What a command prints may stand below it, after an empty line.
            strange = [s for s in strange if not any(re.match(n, s) for n in NO_COMMANDS)]
            assert strange == [], f"{page}: no command that is known here: {strange}"
            lines = [line for line in lines if is_command(line)]
        found += commands(page, lines)
    return tuple(found)


def reason(command: Command) -> str | None:
    """Why a command is not run here, or None."""
    return next((why for mark, why in NOT_RUN.items() if re.match(mark, command.text)), None)


def load(module: str) -> ModuleType:
    """The module that `python -m` would run, or that a command's `main` is in."""
    spec = importlib.util.find_spec(module)
    assert spec is not None, module
    package = spec.submodule_search_locations is not None
    return importlib.import_module(f"{module}.__main__" if package else module)


def parse(command: Command) -> None:
    """Give a command of csd to its parser; a mistake is an error of it."""
    named = command.own
    assert named is not None
    args = load(named[0]).build_parser().parse_args(named[1])
    if named[0] == "csd.export.cli":
        check_arguments(args)


def is_help(command: Command) -> bool:
    named = command.own
    return named is not None and "--help" in named[1]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_taken_by_its_parser(page, capsys):
    extras = set(metadata(DISTRIBUTION).get_all("Provides-Extra") or ())
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    wrong: list[str] = []
    for command in shown(page):
        named = command.own
        if named is None:
            asked = set(re.findall(r"\w+", "".join(re.findall(r"\.\[(.*?)\]", command.text))))
            target = command.words[1] if command.words[0] == "make" else "test"
            assert not command.words[0].startswith("csd"), command.text
            wrong += [] if asked <= extras and target in targets else [command.text]
            continue
        try:
            parse(command)
        except SystemExit as stopped:
            if stopped.code or not is_help(command):
                wrong.append(f"{command.text}: {capsys.readouterr().err}")
        except Exception as error:
            wrong.append(f"{command.text}: {error}")
    assert wrong == []


@pytest.mark.parametrize("page", PAGES)
def test_every_command_that_is_not_marked_runs(page, request, tmp_path, monkeypatch, capsys):
    """One after another, as a reader types them."""
    for name in ("bundle", "other"):
        shutil.copytree(request.getfixturevalue(OF_PAGE.get(page, "local_bundle")), tmp_path / name)
        edit_manifest(tmp_path / name, _named)
    monkeypatch.chdir(tmp_path)
    for command in shown(page):
        text = INSTEAD.get(command.text, command.text)
        command = Command(page, tuple(shlex.split(text))) if text in INSTEAD.values() else command
        if reason(command) is None:
            _run(command, capsys)


def _named(values: dict[str, object]) -> None:
    """A change of a manifest: classes have the names that the pages use."""
    values["class_names"] = ["T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal",
                             "shirt", "sneaker", "bag", "ankle boot"]  # fmt: skip


def _run(command: Command, capsys) -> None:
    named = command.own
    if named is None:
        if shutil.which(command.words[0]) is None:
            pytest.skip(f"{command.words[0]} is not installed")
        done = subprocess.run(command.words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (command.text, done.stderr)
        return
    try:
        code = load(named[0]).main(named[1])
    except SystemExit as stopped:
        code = stopped.code
    wanted = (2,) if command.text == REFUSED else ANSWERS.get(named[0], (0,))
    assert code in wanted, (command.text, capsys.readouterr().err)


def test_every_mark_fits_a_command_and_most_of_csd_that_needs_no_time_is_run():
    every = [command for page in PAGES for command in shown(page)]
    first = [next((m for m in NOT_RUN if re.match(m, command.text)), None) for command in every]
    assert [mark for mark in NOT_RUN if mark not in first] == []
    begun = [block[0].strip() for page in PAGES
             for block in blocks((ROOT / page).read_text(encoding="utf-8"))]  # fmt: skip
    later = [line for page in PAGES for b in blocks((ROOT / page).read_text("utf-8")) for line in b]
    for start in NO_COMMANDS:
        assert any(re.match(start, line) for line in [*begun, *later]), start
    assert {command.text for command in every} >= {REFUSED, *INSTEAD}
    assert sum(command.own is not None for command in every) > 100
    assert sum(reason(command) is None for command in every) > 25


@pytest.mark.parametrize(
    "line",
    [
        "csd-generate bundle --labels 3 --gone 1", "csd generate bundle --labels 3 --mode fast",
        "csd-eval tune bundle --within much", "python -m csd.tools.measure.gone bundle",
        "csd-export --out bundle --max-batch 0 --zoo fashion-mnist", "csd-gone bundle",
        "python -m csd.tools.measure.stream bundle --threads none",
    ],
)  # fmt: skip
def test_a_line_that_no_command_takes_is_found(line, capsys):
    (command,) = commands("page", [line])
    stopped = (SystemExit, CsdError, AssertionError, ModuleNotFoundError)
    with pytest.raises(stopped) as caught:
        parse(command)
    assert getattr(caught.value, "code", 2) == 2
