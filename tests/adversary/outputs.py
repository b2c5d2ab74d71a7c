"""Outputs that are devices, pipes, links, each other, the input, or cannot be written.

Devices and small, full or read-only disks are made in a private namespace of mounts, so all of it
runs there, in a process of its own: `python -m tests.adversary.outputs FOLDER BUNDLE`.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from ..helpers import ROOT
from .answers import Answer, Case, Skipped, ask, own_folder, reports_kept_in, tree
from .commands import COMMANDS
from .place import FAST, Place, no_work

# An option that writes a file, and how what is written begins.
WRITES = {
    "--out": b"\x89PNG", "--save-latents": b"\x93NUMPY", "--stats": b"{\n",
}  # fmt: skip
_PRIVATE = (
    'mount -t tmpfs none "$1/private" && cd "$1/private" && mkdir small full readonly && '
    "mknod -m 666 null c 1 3 && mknod -m 666 fulldev c 1 7 && "
    "mount -t tmpfs -o size=64k none small && mount -t tmpfs -o size=64k none full && "
    "dd if=/dev/zero of=full/ballast bs=1k count=64 2>/dev/null; "
    "mount -t tmpfs -o ro none readonly && cd \"$2\" && shift 2 && exec \"$@\""
)  # fmt: skip


def cases(place: Place, everything: bool) -> Iterator[Case]:
    """All outputs: the cases have been tried in the private namespace, and are told here."""
    private = place.folder / "private"
    private.mkdir(exist_ok=True)
    own = [sys.executable, "-m", "tests.adversary.outputs", str(place.folder), str(place.bundle)]
    argv = ["unshare", "-m", "sh", "-c", _PRIVATE, "sh", str(place.folder), str(ROOT), *own]
    names = [case.name for case in _cases(place)]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        results = json.loads(done.stdout.splitlines()[-1])
    except (FileNotFoundError, IndexError, ValueError):
        done = subprocess.run(own, cwd=ROOT, capture_output=True, text=True, check=False)
        results = json.loads(done.stdout.splitlines()[-1])
    for name in names:
        yield Case(name, lambda name=name: _told(results.get(name, "was not tried")))


def _told(result: str | None) -> str | None:
    if result is not None and result.startswith("skipped: "):
        raise Skipped(result.removeprefix("skipped: "))
    return result


def _cases(place: Place) -> Iterator[Case]:
    private = place.folder / "private"
    for option, begins in WRITES.items():
        for name, fault in _good(place, private, option, begins).items():
            yield Case(f"{option}: {name}", fault)
        for name, make in _bad(place, private).items():
            yield Case(f"{option}: {name}", _refused(place, option, make))
    for name, make in _bad(place, private).items():
        for tool, option in (("csd-bench", "--json"), ("profile", "--json"),
                             ("csd-bench", "--plot"), ("zoo_eval", "--samples"),
                             ("csd-doctor", "--json"), ("csd-inspect", "--json"),
                             ("csd-inspect", "--plot")):  # fmt: skip
            yield Case(f"{tool} {option}: {name}", _tool_refused(place, tool, option, make))
    for tool in ("csd-export", "demo", "random_model", "gpu_check"):
        for name in ("a file", "below a file", "a device", "a full disk", "a read-only disk",
                     "a socket", "a pipe", "inside the bundle"):  # fmt: skip
            yield Case(f"{tool} --out: {name}", _folder_refused(place, private, tool, name))
    for one, other in (("--out", "--stats"), ("--out", "--save-latents"),
                       ("--stats", "--save-latents")):  # fmt: skip
        for name in ("x", "./x", "link", "hard", "-", "/dev/stdout", "pipe"):
            yield Case(f"{one} and {other} are one: {name}", _twice(place, one, other, name))


def _generate(place: Place, *argv: object) -> Answer:
    from csd.runtime.cli import main

    return ask(main, [place.bundle, "--labels=1", "--quiet", *FAST, *argv])


Make = Callable[[Path], str]


def _bad(place: Place, private: Path) -> dict[str, Make]:
    """What no file can be written to: makes it in a folder and returns its path."""

    def made(name: str, make: Callable[[Path], object]) -> Make:
        def path(folder: Path) -> str:
            make(folder / name)
            return name

        return path

    return {
        "a folder": made("x", lambda path: path.mkdir()),
        "below a file": lambda folder: made("x", lambda path: path.touch())(folder) + "/y",
        "in no folder": lambda folder: "gone/x",
        "a link to itself": made("x", lambda path: path.symlink_to("x")),
        "a link into no folder": made("x", lambda path: path.symlink_to("gone/x")),
        "a socket": made("x", _socket),
        "a long name": lambda folder: "x" * 256,
        "a path that is too long": lambda folder: "x/" * 3000,
        "of no characters": lambda folder: "",
        "a null byte": lambda folder: "x\0",
        "the manifest": lambda folder: str(place.bundle / "manifest.json"),
        "a new file of the bundle": lambda folder: str(place.bundle / "new"),
        "a link to the manifest": made(
            "x", lambda path: path.symlink_to(place.bundle / "manifest.json")
        ),
        "in /proc": lambda folder: "/proc/x",
        "a closed descriptor": lambda folder: "/dev/fd/99",
        "a full disk": lambda folder: _there(private / "full") + "/x",
        "a read-only disk": lambda folder: _there(private / "readonly") + "/x",
    }


def _good(
    place: Place, private: Path, option: str, begins: bytes
) -> dict[str, Callable[[], str | None]]:
    """What is written to as it is."""

    def into(check: Callable[[Path], str | None]) -> Callable[[], str | None]:
        def fault() -> str | None:
            with own_folder(place.folder) as folder:
                return check(folder)

        return fault

    def write(path: object) -> str | None:
        others = [] if option == "--out" else ["--out=/dev/null"]
        return _generate(place, *others, f"{option}={path}").fault((0,))

    def device(folder: Path) -> str | None:
        null = Path(_there(private / "null"))
        fault = write(null)
        return fault or (None if stat.S_ISCHR(null.stat().st_mode) else "the device is gone")

    def pipe(folder: Path) -> str | None:
        os.mkfifo(folder / "x")
        found: list[bytes] = []
        reader = threading.Thread(target=lambda: found.append((folder / "x").read_bytes()))
        reader.start()
        fault = write(folder / "x")
        reader.join(10)
        kept = stat.S_ISFIFO((folder / "x").stat().st_mode)
        return fault or (None if kept and found[0].startswith(begins) else "the pipe is gone")

    def link(folder: Path) -> str | None:
        (folder / "target").write_bytes(b"old")
        (folder / "x").symlink_to("target")
        fault = write("x")
        if not (folder / "x").is_symlink():
            return fault or "the link is gone"
        return fault or _begins(folder / "target", begins)

    def dangling(folder: Path) -> str | None:
        (folder / "x").symlink_to("new")
        return write("x") or _begins(folder / "new", begins)

    def hard(folder: Path) -> str | None:
        (folder / "x").write_bytes(b"old" * 10**6)
        os.link(folder / "x", folder / "y")
        return write("x") or _begins(folder / "y", begins)

    def mode(folder: Path) -> str | None:
        (folder / "x").write_bytes(b"old")
        if os.geteuid() == 0:
            os.chown(folder / "x", 12345, 23456)
        (folder / "x").chmod(0o640)
        before = (folder / "x").stat()
        fault, after = write("x"), (folder / "x").stat()
        same = [(s.st_mode, s.st_uid, s.st_gid) for s in (before, after)]
        return fault or (None if same[0] == same[1] else f"mode and owner: {same}")

    def stdout(path: str) -> Callable[[Path], str | None]:
        def check(folder: Path) -> str | None:
            others = [] if option == "--out" else ["--out=/dev/null"]
            answer = _generate(place, *others, f"{option}={path}")
            if not answer.out.startswith(begins):
                return answer.fault((0,)) or f"stdout begins {answer.out[:20]!r}"
            return answer.fault((0,)) or (f"left {tree(folder)}" if tree(folder) else None)

        return check

    def named(name: str | bytes) -> Callable[[Path], str | None]:
        def check(folder: Path) -> str | None:
            text = os.fsdecode(name)
            return write(text) or (None if (folder / text).is_file() else "was not written")

        return check

    def full(folder: Path) -> str | None:
        path = Path(_there(private / "fulldev"))
        others = [] if option == "--out" else ["--out=/dev/null"]
        fault = _generate(place, *others, f"{option}={path}").fault((2,))
        return fault or (None if stat.S_ISCHR(path.stat().st_mode) else "the device is gone")

    return {
        "a device": into(device), "a pipe": into(pipe), "a link": into(link),
        "a link to what is not there": into(dangling), "a file of two names": into(hard),
        "a mode and an owner": into(mode), "- is stdout": into(stdout("-")),
        "/dev/stdout": into(stdout("/dev/stdout")), "/dev/fd/1": into(stdout("/dev/fd/1")),
        "./- is a file": into(named("./-")), "a name of 255": into(named("x" * 255)),
        "a line break in its name": into(named("a\nb")), "bytes that are no text":
        into(named(b"\xff\xfe")), "a device that is full": into(full),
    }  # fmt: skip


def _begins(path: Path, begins: bytes) -> str | None:
    found = path.read_bytes()[:20]
    return None if found.startswith(begins) else f"{path.name} begins {found!r}"


def _refused(place: Place, option: str, make: Make) -> Callable[[], str | None]:
    def fault() -> str | None:
        with own_folder(place.folder) as folder:
            path = make(folder)
            before = _state(folder, place.bundle)
            others = [] if option == "--out" else ["--out=/dev/null"]
            answer = _generate(place, *others, f"{option}={path}")
            if _state(folder, place.bundle) != before:
                return f"left behind or altered: {tree(folder)}"
            return answer.fault((2,))

    return fault


def _tool_refused(place: Place, tool: str, option: str, make: Make) -> Callable[[], str | None]:
    def fault() -> str | None:
        with own_folder(place.folder) as folder, no_work():
            path = make(folder)
            before = _state(folder, place.bundle)
            answer = ask(COMMANDS[tool].main, [*COMMANDS[tool].ready(place), f"{option}={path}"])
            if _state(folder, place.bundle) != before:
                return f"left behind or altered: {tree(folder)}"
            # A disk that is full takes a file's name, and no more.
            return answer.fault((2, "at work") if "/full/" in path else (2,))

    return fault


def _folder_refused(place: Place, private: Path, tool: str, kind: str) -> Callable[[], str | None]:
    def fault() -> str | None:
        with own_folder(place.folder) as folder, no_work():
            out, codes = str(folder / "x"), (2,)
            if kind in ("a file", "below a file"):
                (folder / "x").touch()
                out += "/y" if kind == "below a file" else ""
            elif kind == "a socket":
                _socket(folder / "x")
            elif kind == "a pipe":
                os.mkfifo(folder / "x")
            elif kind == "a device":
                out = _there(private / "null")
            elif kind == "inside the bundle":
                out = str(place.bundle / "new")
                # Nothing is read from the bundle.
                codes = (2,) if tool == "gpu_check" else (2, "at work")
            else:
                disk = "full" if kind == "a full disk" else "readonly"
                out = _there(private / disk) + "/x"
                # A folder can be made on a disk that is full.
                codes = (2, "at work")
            before = _state(folder, place.bundle)
            ready = [part for part in COMMANDS[tool].ready(place) if not part.startswith("--out=")]
            answer = ask(COMMANDS[tool].main, [*ready, f"--out={out}"])
            left = Path(place.bundle / "new")
            with suppress(OSError):
                left.rmdir()
            if _state(folder, place.bundle) != before:
                return f"left behind or altered: {tree(folder)}"
            return answer.fault(codes)

    return fault


def _twice(place: Place, one: str, other: str, name: str) -> Callable[[], str | None]:
    def fault() -> str | None:
        with own_folder(place.folder) as folder:
            (folder / "x").write_bytes(b"old")
            (folder / "link").symlink_to("x")
            os.link(folder / "x", folder / "hard")
            os.mkfifo(folder / "pipe")
            first = name if name in ("-", "pipe") else "-" if name == "/dev/stdout" else "x"
            answer = _generate(place, f"{one}={first}", f"{other}={name}")
            if (folder / "x").read_bytes() != b"old":
                return "was written"
            return answer.fault((2,)) or (None if len(tree(folder)) == 4 else str(tree(folder)))

    return fault


def _state(*folders: Path) -> list[tuple[str, int, int]]:
    """What lies in folders: names, kinds and sizes."""
    return [(str(path), path.lstat().st_mode, path.lstat().st_size if path.is_file() else 0)
            for folder in folders for path in sorted(folder.rglob("*"))]  # fmt: skip


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        before = Path.cwd()
        os.chdir(path.parent)  # such a name may have a hundred bytes
        made.bind(path.name)
        os.chdir(before)


def _there(path: Path) -> str:
    if not path.exists():
        raise Skipped("needs root and a private namespace of mounts")
    return str(path)


def _main(folder: Path, bundle: Path) -> int:
    configs = {role: folder / f"{role}.json" for role in ("target", "draft")}
    place = Place(folder, bundle, configs)
    results: dict[str, str | None] = {}
    reports = folder / "reports"
    with reports_kept_in(reports):
        for case in _cases(place):
            try:
                results[case.name] = case.fault()
            except Skipped as reason:
                results[case.name] = f"skipped: {reason}"
            except Exception as error:
                results[case.name] = f"the case itself failed: {error!r}"
            for report in reports.iterdir():
                results[case.name] = f"a report: {report.read_text(encoding='utf-8')[-300:]!r}"
                report.unlink()
    print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1]), Path(sys.argv[2])))
