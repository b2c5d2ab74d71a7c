"""Every remedy that the doctor prints is a command that is taken, or a sentence of a known kind.

Commands of csd are parsed by their own parsers, packages are those that the project declares, and
what can be followed here is followed.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Callable
from importlib.metadata import requires

import pytest

from csd.export.arguments import build_parser as export_parser
from csd.export.arguments import check_arguments
from csd.plugins.build import build_parser as kernels_parser
from csd.runtime.cli import build_parser as generate_parser
from csd.runtime.errors import BackendError
from csd.tools.doctor.bundle.backends import backend_checks, trial_check
from csd.tools.doctor.bundle.files import look_at
from csd.tools.doctor.check import Check
from csd.tools.doctor.machine.gpu import gpu_checks
from csd.tools.doctor.machine.jetson import jetson_checks
from csd.tools.doctor.machine.memory import disk_checks, memory_checks
from csd.tools.doctor.machine.processor import processor_checks
from csd.tools.doctor.software import python
from csd.tools.doctor.software.packages import PURPOSES, Package, find_packages, package_checks

from .machines import CONTAINER, DESKTOP, OLD_CONTAINER, ORIN, system

DECLARED = {
    *(re.split(r"[^\w-]", line)[0].lower() for line in requires("csd-edge") or ()),
    "csd-edge", "csd",
}  # fmt: skip
# What is no command of ours: as a whole, and what it is for.
SENTENCES = {
    "close other programs",
    "raise the container's limit of memory",
    "install NVIDIA's driver",
    "update the driver",
    "flash JetPack 6 or newer (docs/jetson.md)",
    "install csd again",
    "start from another folder",
    "export it again with csd-export",
    "export the bundle again",
    "export the bundle again with csd-export",
    "fetch the bundle again",
    "install the libraries again",
    "use the bundle that it was made from",
    "check nvidia-smi and CUDA_VISIBLE_DEVICES",
    "rename it",
    "sudo jetson_clocks",  # both are the board's own, in docs/jetson.md too
    "on Jetson it comes with JetPack (python3 -m venv --system-site-packages sees it)",
}


def _parse(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    return parser.parse_args(words)


def _takes_export(words: list[str]) -> None:
    check_arguments(_parse(export_parser(), words))


def _takes_generate(words: list[str]) -> None:
    _parse(generate_parser(), ["bundle", "--labels=1", *words])


def _takes_pip(words: list[str]) -> None:
    verb, *rest = words
    options = [word for word in rest if word.startswith("-")]
    names = [re.split(r"[<>=]", word)[0] for word in rest if not word.startswith("-")]
    assert verb in ("install", "uninstall"), words
    assert set(options) <= {
        "-y", "--upgrade", "--force-reinstall", "--no-cache-dir",
        "--extra-index-url=https://pypi.nvidia.com",
    }, words  # fmt: skip
    assert names
    assert all(name.lower() in DECLARED or name.startswith("/") for name in names), names


TAKERS: dict[str, Callable[[list[str]], object]] = {
    "csd-export ": _takes_export,
    "give csd-generate ": _takes_generate,
    "use --backend": lambda words: _takes_generate(["--backend", *words]),
    "--backend": lambda words: _takes_generate(["--backend", *words]),
    "try another --backend of csd-generate": lambda words: None,
    "pip ": _takes_pip,
    "elsewhere pip ": _takes_pip,
    "python -m csd.plugins.build ": lambda words: _parse(kernels_parser(), words),
    "run python -m csd.plugins.build ": lambda words: _parse(kernels_parser(), words),
    "sudo nvpmodel -m ": lambda words: int(*words),
}


def _is_taken(part: str) -> bool:
    part = part.strip()
    if part in SENTENCES or part.endswith(" of your system that has it"):
        return True
    if re.fullmatch(r"(unset|export) [A-Z_]+(=DIR, of a folder that you may write to)?", part):
        return True
    plain = re.sub(r" \([^)]*\)$", "", part)
    for start, take in TAKERS.items():
        if plain.startswith(start):
            take(shlex.split(plain.removeprefix(start)))
            return True
    return False


def parts_of(remedy: str) -> list[str]:
    """The ways out that a remedy names."""
    text = remedy.replace("=DIR, of a folder", "=DIR\0 of a folder")
    text = re.sub(r"\(or onnxruntime-gpu, for --backend onnxruntime_cuda\)", "", text)
    parts = re.split(r", or |, then |, and |; |, elsewhere (?=pip)|, of the major", text)
    return [part.replace("\0", ",") for part in parts if part and part[0] != " "]


def _absent(name: str) -> Package:
    from csd.runtime.libraries.packages import install

    return Package(name, False, reason="it is not installed", remedy=install(name))


@pytest.fixture
def findings(tmp_path, monkeypatch, make_bundle) -> list[Check]:
    """What the doctor says of machines and bundles with every fault that can be made here."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("CSD_CACHE_DIR", str(tmp_path / "file" / "below"))
    checks = disk_checks(None)
    for number, files in enumerate((ORIN, DESKTOP, CONTAINER, OLD_CONTAINER)):
        here = system(tmp_path / str(number), files)
        checks += [*processor_checks(here), *memory_checks(here), *jetson_checks(here)]
    old = "# R35 (release), REVISION: 4.1, GCID: 1"
    checks += jetson_checks(system(tmp_path / "old", ORIN, nv_tegra_release=old))
    for text in (
        "no CUDA driver here (x is not found): install NVIDIA's driver, or use --backend "
        "onnxruntime",
        "the CUDA driver finds no device (error 100): check nvidia-smi and CUDA_VISIBLE_DEVICES, "
        "or use --backend onnxruntime",
    ):

        def find(text: str = text) -> tuple[()]:
            raise BackendError(text)

        checks += gpu_checks(system(tmp_path / "gpu", DESKTOP), find)
    checks += package_checks({name: _absent(name) for name in PURPOSES}, gpu=False)
    broken = tmp_path / "packages"
    for module in ("torch", "onnx", "safetensors"):
        (broken / module).mkdir(parents=True)
        (broken / module / "__init__.py").write_text("import os; os._exit(1)", encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(broken))
        checks += package_checks(
            {**{name: _absent(name) for name in PURPOSES},
             **find_packages(("torch", "onnx", "safetensors"))}, gpu=True,
        )  # fmt: skip
    for value in ("off", "on", str(tmp_path / "gone.so")):
        monkeypatch.setenv("CSD_HOST_LIBRARY", value)
        monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
        checks += python.python_checks(numpy=True)
    monkeypatch.delenv("CSD_HOST_LIBRARY")
    monkeypatch.setattr(python, "installed_version", lambda _: "9")
    monkeypatch.setattr(python, "_installed_places", lambda: [tmp_path])
    checks += python.python_checks(numpy=True)
    monkeypatch.setattr(python, "_installed_places", list)
    checks += python.python_checks(numpy=True)
    whole = make_bundle()
    found = look_at(whole)
    assert found.manifest is not None
    for available in (None, 1):
        rows, _ = backend_checks(
            whole, found.manifest, found.sizes, threads=1, available=available, ending={}
        )
        checks += rows
    (whole / "decoder.onnx").unlink()
    (whole / "target_head_step.onnx.data").write_bytes(b"short")
    checks += [*look_at(whole).checks, trial_check(whole, "onnxruntime", 1)]
    checks += look_at(make_bundle(lambda v: v.update(name=3), "damaged")).checks
    return checks


def test_every_remedy_is_taken_by_its_command(findings):
    remedies = {check.remedy for check in findings if check.remedy}
    assert len(remedies) > 25
    for remedy in remedies:
        for part in parts_of(remedy):
            assert _is_taken(part), (remedy, part)
    starts = {start for start in TAKERS for r in remedies if start in r}
    assert {"csd-export ", "pip ", "sudo nvpmodel -m "} <= starts


def test_every_problem_has_a_reason_and_a_remedy(findings):
    bare = [c for c in findings if c.state == "problem" and not (c.reason and c.remedy)]
    assert bare == []


@pytest.mark.parametrize(
    "remedy", ["csd-export --rebuilt x", "pip install stranger", "do something", "use --backends x"]
)
def test_what_is_not_taken_is_found(remedy):
    try:
        taken = _is_taken(remedy)
    except (AssertionError, SystemExit):
        taken = False
    assert not taken
