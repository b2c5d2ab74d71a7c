"""The packages of csd's extras: their versions, or why one is absent or broken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ....runtime.libraries.imports import is_absent
from ....runtime.libraries.packages import (
    install,
    installed_packages,
    installed_version,
    library_of,
    outdated,
    reinstall,
)
from ..check import NOTE, OK, PROBLEM, Check
from ..child import run_child

AREA = "packages"
_PROBE = f"{__package__}.probe"
_SECONDS = 180.0
REQUIRED = ("numpy", "PIL", "rich")
CPU_BACKEND = "onnxruntime"
ENGINE_BACKENDS = ("tensorrt", "tensorrt_rtx")
CUDA = ("cuda.bindings", "cuda.core")
# What each is for; what is not required nor a backend is a note in any state.
PURPOSES = {
    "numpy": "every command",
    "PIL": "writing images",
    "rich": "tables and progress",
    "onnxruntime": "running graphs (extras cpu and gpu)",
    "tensorrt": "engines of TensorRT (extra tensorrt; a Jetson has its own)",
    "tensorrt_rtx": "engines for RTX GPUs (extra rtx)",
    "cuda.bindings": "running engines",
    "cuda.core": "kernels that are launched directly",
    "torch": "csd-export and training (extra export)",
    "onnx": "csd-export (extra export)",
    "onnx_ir": "csd-export (extra export)",
    "onnxscript": "csd-export (extra export)",
    "safetensors": "csd-export from safetensors (extra export)",
    "matplotlib": "plots (extra tools)",
    "mlflow": "csd-eval compare with MLFLOW_TRACKING_URI (extra mlflow)",
    "gradio": "csd-demo (extra demo)",
    "ray": "--ray of csd-generate and csd-eval run (extra ray)",
}


@dataclass(frozen=True)
class Package:
    """A package as it was found.

    Attributes:
        module: its name in Python.
        present: whether it is installed.
        version: of it, or empty.
        reason: why it cannot be used, or empty.
        remedy: what mends that.
        facts: what else is to be known.
        ends: whether its import ends Python, so that it must not be tried again.
    """

    module: str
    present: bool
    version: str = ""
    reason: str = ""
    remedy: str = ""
    facts: str = ""
    ends: bool = False

    @property
    def works(self) -> bool:
        """Whether it can be imported, and is whole."""
        return self.present and not self.reason


def find_packages(modules: Sequence[str] = tuple(PURPOSES)) -> dict[str, Package]:
    """Import packages, each where it can do no harm, and tell how they are."""
    there = [module for module in modules if not is_absent(module)]
    found = dict(_probed(there))
    return {
        module: found.get(module)
        or Package(module, False, reason="it is not installed", remedy=install(module))
        for module in modules
    }


def package_checks(packages: Mapping[str, Package], *, gpu: bool) -> list[Check]:
    """Say how the packages are.

    Args:
        packages: by module, of `PURPOSES`.
        gpu: whether there is a device that engines could run on.
    """
    others = gpu and any(_runs_engines(packages, name) for name in ENGINE_BACKENDS)
    checks: list[Check] = []
    for module, package in packages.items():
        needed = module in REQUIRED or (module == CPU_BACKEND and not others)
        name, purpose = _name(module), PURPOSES[module]
        if package.works:
            finding = f"{package.version}{', ' if package.facts else ''}{package.facts}"
            old = outdated(*library_of(module).packages)
            if old is None:
                checks.append(Check(AREA, name, OK, finding))
            else:
                reason, _, remedy = old.partition(", ")
                checks.append(Check(AREA, name, NOTE, finding, reason, remedy))
            continue
        state = PROBLEM if needed else NOTE
        how = f"{package.version} is broken" if package.present else "not installed"
        if not package.present and not needed:
            checks.append(Check(AREA, name, NOTE, f"{how}: for {purpose}", "", package.remedy))
            continue
        finding = f"{how}: needed for {purpose}" if needed else f"{how}: for {purpose}"
        checks.append(Check(AREA, name, state, finding.strip(), package.reason, package.remedy))
    return checks


def _runs_engines(packages: Mapping[str, Package], name: str) -> bool:
    return packages[name].works and packages["cuda.bindings"].works


def _name(module: str) -> str:
    found = [*installed_packages(module)]
    return found[0] if found else library_of(module).packages[0]


def _probed(modules: Sequence[str]) -> Iterator[tuple[str, Package]]:
    """Probe modules in a child, and in another one those that follow one that ended it."""
    left = [*modules]
    while left:
        ended = run_child(_PROBE, left, _SECONDS)
        begun = None
        for value in ended.values:
            if _is_begun(value):
                begun = value["begun"]
            elif isinstance(value, dict) and value.get("module") in left:
                left.remove(value["module"])
                begun = None
                yield value["module"], Package(present=True, **value)
        if not left:
            return
        culprit = begun if begun in left else left[0]
        left.remove(culprit)
        how = ended.how or "its import ended Python"
        version = installed_version(library_of(culprit).packages[0])
        yield culprit, Package(culprit, True, version, how, reinstall(culprit), ends=True)


def _is_begun(value: Any) -> bool:
    return isinstance(value, dict) and "begun" in value
