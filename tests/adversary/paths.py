"""Paths in a manifest, and in what it names, that leave the bundle or are none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from csd.runtime.bundle.manifest import file_sha256

from ..helpers import edit_manifest, forge_hashes
from .answers import Case, ask, own_folder, tree
from .place import FAST, Place, no_work, own
from .watch import opened_files

OUTSIDE = "outside"
ENGINE = {
    "graph": "decoder", "backend": "tensorrt", "precision": "fp32", "sha256": "0" * 64, "size": 1,
    "library": "10.3", "platform": "linux-x86_64", "compute_capabilities": ["8.7"],
    "build_seconds": 1.0, "fingerprint": {},
}  # fmt: skip
# `{}` is the folder outside, which has files of the bundle's names.
BAD = (
    "../outside/{n}", "{}/{n}", "./{n}", "../copy/{n}", "a/../{n}", "..", ".", "/", "", " ",
    "..\\outside\\{n}", "C:\\{n}", "C:{n}", "\\\\host\\{n}", "//host/{n}", "a//{n}", "{n}/",
    "~/{n}", "{n}\0", "{n}\n",
    "\x1b[31m{n}", "\u202e{n}", "file:///{n}", "../../../../../../etc/passwd",
    "/etc/passwd", "/dev/zero", "/proc/self/mem", "%2e%2e/{n}", "link/{n}", "x" * 300, "\ud800",
    "a/b/" * 200 + "{n}", "manifest.json", "{n}/../../outside/{n}",
)  # fmt: skip
FILES = {"graph": "decoder.onnx", "weights": "decoder.onnx", "calibration": "calibration.npz",
         "engine": "x.engine"}  # fmt: skip


def cases(place: Place, everything: bool) -> Iterator[Case]:
    """All bad paths."""
    outside = place.folder / OUTSIDE
    if not outside.exists():
        shutil.copytree(place.bundle, outside)
        (outside / "x.engine").write_bytes(b"engine")
    for kind, name in FILES.items():
        for pattern in BAD:
            path = pattern.replace("{}", str(outside)).replace("{n}", name)
            # An escape is a plain character in a name.
            yield Case(f"{kind}: {pattern[:40]!r}", _named(place, kind, name, path))
    for pattern in BAD[:26]:
        path = pattern.replace("{}", str(outside)).replace("{n}", "decoder.onnx")
        yield Case(f"within a graph: {pattern[:40]!r}", _within(place, path))
    for name in tree(place.bundle):
        for target in (f"../{OUTSIDE}/{name}", str(outside / name), "/etc/passwd", "/dev/zero"):
            yield Case(f"{name} is a link to {target.replace(str(place.folder), '')}",
                       _linked(place, name, target))  # fmt: skip
    yield Case("a number twice", _repeated(place))


def _named(place: Place, kind: str, name: str, path: str) -> Callable[[], str | None]:
    def change(values: dict[str, Any]) -> None:
        if kind == "graph":
            files = values["graphs"]["decoder"]["files"]
            values["graphs"]["decoder"]["files"] = {path: files[name]}
        elif kind == "weights":
            values["graphs"]["decoder"]["files"][path] = file_sha256(place.bundle / name)
        elif kind == "calibration":
            values["calibration"]["file"] = path
        else:
            values["engines"] = [{**ENGINE, "file": path}]

    def make(bundle: Path) -> None:
        (bundle / "link").symlink_to(f"../{OUTSIDE}")
        edit_manifest(bundle, change)

    return _tried(place, make)


def _within(place: Place, location: str) -> Callable[[], str | None]:
    """A graph that takes weights from elsewhere, with a manifest that agrees with its bytes."""

    def make(bundle: Path) -> None:
        import onnx

        file = bundle / "decoder.onnx"
        own(file)
        model = onnx.load(file, load_external_data=False)
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.ClearField("external_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", "4")):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value.encode("utf-8", "replace").decode()
        file.write_bytes(model.SerializeToString())
        forge_hashes(bundle)

    return _tried(place, make)


def _linked(place: Place, name: str, target: str) -> Callable[[], str | None]:
    def make(bundle: Path) -> None:
        (bundle / name).unlink()
        os.symlink(target, bundle / name)

    return _tried(place, make)


def _repeated(place: Place) -> Callable[[], str | None]:
    def make(bundle: Path) -> None:
        file = bundle / "manifest.json"
        file.write_text(file.read_text(encoding="utf-8").replace(
            '"max_batch"', '"max_batch": 8, "max_batch"'), encoding="utf-8")  # fmt: skip

    return _tried(place, make)


def _tried(place: Place, make: Callable[[Path], object]) -> Callable[[], str | None]:
    def fault() -> str | None:
        from csd.runtime.cli import main

        with ExitStack() as stack:
            bundle = stack.enter_context(place.copy())
            make(bundle)
            folder = stack.enter_context(own_folder(place.folder))
            stack.enter_context(no_work())
            with opened_files() as opened:
                answer = ask(main, [bundle, "--labels=1", "--quiet", *FAST])
            if strange := left_bundle(place, bundle, folder, opened):
                return f"opened {strange}"
            return answer.fault((2,)) or (f"left {tree(folder)}" if tree(folder) else None)

    return fault


def left_bundle(place: Place, bundle: Path, folder: Path, opened: list[str]) -> list[str]:
    """Return what was opened beside the bundle and the folder of the run, or is the system's."""
    allowed = (f"{os.path.realpath(bundle)}/", f"{os.path.realpath(folder)}/")
    watched = (f"{os.path.realpath(place.folder)}/", "/etc/passwd", "/dev/zero", "/proc/self/mem")
    real = {os.path.realpath(path) for path in opened}
    return sorted(path for path in real
                  if path.startswith(watched) and not f"{path}/".startswith(allowed))  # fmt: skip
