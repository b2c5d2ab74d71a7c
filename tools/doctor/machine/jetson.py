"""A Jetson: its board, release, power mode and clocks, all readable without root."""

from __future__ import annotations

import re

from ..check import NOTE, OK, Check
from .system import System

AREA = "Jetson"
_RELEASE = re.compile(r"#\s*R(\d+) \(release\), REVISION: (\d+(?:\.\d+)*)")
_MODE = re.compile(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>")
# JetPack by the major version of Jetson Linux (L4T).
_JETPACK = {32: "4", 34: "5", 35: "5", 36: "6", 38: "7"}
# The first that brings a TensorRT with what csd needs (10.3).
_FIRST = 36
_GPU = re.compile(r"gpu|g[avp]\d+b")


def is_jetson(system: System) -> bool:
    """Whether the system is a Jetson's."""
    return system.text("/etc/nv_tegra_release") is not None


def jetson_checks(system: System) -> list[Check]:
    """Look at a Jetson; nothing on any other machine."""
    if not is_jetson(system):
        return []
    model = system.text("/proc/device-tree/model")
    checks = [Check(AREA, "board", OK, model or "unknown: the system does not tell it")]
    checks.append(_release(system))
    checks += _power_mode(system)
    checks += _clocks(system)
    return checks


def _release(system: System) -> Check:
    text = system.text("/etc/nv_tegra_release") or ""
    found = _RELEASE.search(text)
    if found is None:
        return Check(AREA, "release", NOTE, "unknown: /etc/nv_tegra_release has another form")
    major = int(found[1])
    finding = f"Jetson Linux {found[1]}.{found[2]}"
    if major in _JETPACK:
        finding += f", of JetPack {_JETPACK[major]}"
    if major < _FIRST:
        return Check(
            AREA, "release", NOTE, finding,
            "its TensorRT is older than 10.3, the first that csd runs with",
            "flash JetPack 6 or newer (docs/jetson.md), or use --backend onnxruntime",
        )  # fmt: skip
    return Check(AREA, "release", OK, finding)


def _power_mode(system: System) -> list[Check]:
    current = re.search(r"pmode:(\d+)", system.text("/var/lib/nvpmodel/status") or "")
    if current is None:
        return []
    modes = dict(_MODE.findall(system.text("/etc/nvpmodel.conf") or ""))
    number = str(int(current[1]))
    name = modes.get(number, "unknown")
    best = next((key for key, title in modes.items() if title.startswith("MAXN")), None)
    finding = f"{number} ({name})"
    if best is None or best == number:
        return [Check(AREA, "power mode", OK, finding)]
    return [Check(
        AREA, "power mode", NOTE, finding,
        f"mode {best} ({modes[best]}) runs faster", f"sudo nvpmodel -m {best}",
    )]  # fmt: skip


def _clocks(system: System) -> list[Check]:
    shares: list[str] = []
    slow = False
    for name, current, most in _frequencies(system):
        shares.append(f"{name} {current / 1e6:.0f} of {most / 1e6:.0f} MHz")
        slow |= current < most
    if not shares:
        return []
    finding = ", ".join(shares)
    if not slow:
        return [Check(AREA, "clocks", OK, finding)]
    return [Check(
        AREA, "clocks", NOTE, finding, "clocks follow the load: times of short runs differ",
        "sudo jetson_clocks",
    )]  # fmt: skip


def _frequencies(system: System) -> list[tuple[str, int, int]]:
    """Name, current and highest frequency in Hz of the GPU and the first processor."""
    found: list[tuple[str, int, int]] = []
    for name in system.names("/sys/class/devfreq"):
        folder = f"/sys/class/devfreq/{name}"
        current, most = (system.number(f"{folder}/{kind}_freq") for kind in ("cur", "max"))
        if _GPU.search(name) and current and most:
            found.append(("GPU", current, most))
    folder = "/sys/devices/system/cpu/cpu0/cpufreq"
    current = system.number(f"{folder}/scaling_cur_freq")
    most = system.number(f"{folder}/cpuinfo_max_freq")
    if current and most:  # in kHz
        found.append(("CPU", current * 1000, most * 1000))
    return found
