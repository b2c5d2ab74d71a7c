"""The processor: what it is, its instructions, how much of it may be used, and the load."""

from __future__ import annotations

import os

from ..check import NOTE, OK, Check
from . import cgroup
from .system import System

AREA = "processor"
# What matters to matrices, by the names that the kernel gives them, the most telling last.
_X86 = {
    "avx2": "AVX2", "avx512f": "AVX-512", "avx_vnni": "VNNI", "avx512_vnni": "VNNI",
    "avx512_bf16": "bf16", "amx_bf16": "AMX bf16", "amx_int8": "AMX int8",
}  # fmt: skip
_ARM = {
    "asimd": "NEON", "asimdhp": "fp16", "asimddp": "dotprod", "i8mm": "i8mm", "bf16": "bf16",
    "sve": "SVE",
}  # fmt: skip
# Arm's processors do not tell their name: designers and parts as their manuals have them.
_PARTS = {
    ("0x41", "0xd07"): "Arm Cortex-A57", ("0x41", "0xd08"): "Arm Cortex-A72",
    ("0x41", "0xd0b"): "Arm Cortex-A76", ("0x41", "0xd0c"): "Arm Neoverse N1",
    ("0x41", "0xd42"): "Arm Cortex-A78AE", ("0x41", "0xd40"): "Arm Neoverse V1",
    ("0x41", "0xd4f"): "Arm Neoverse V2", ("0x41", "0xd83"): "Arm Neoverse V3AE",
    ("0x4e", "0x004"): "NVIDIA Carmel",
}  # fmt: skip
DEFAULT_THREADS = 2


def processor_checks(system: System) -> list[Check]:
    """Look at the processor."""
    cpu = system.fields("/proc/cpuinfo")
    checks = [Check(AREA, "name", OK, _name(cpu))]
    checks.append(_features(cpu))
    usable = usable_threads(system)
    checks.append(_threads(system, usable))
    checks.append(_load(system, usable))
    return checks


def usable_threads(system: System) -> int:
    """Threads that this process can keep busy: its processors, less by a limit of its group."""
    quota = cgroup.processors(system)
    allowed = _allowed(system)
    return allowed if quota is None else min(allowed, cgroup.rounded_up(quota))


def _name(cpu: dict[str, str]) -> str:
    known = _PARTS.get((cpu.get("CPU implementer", ""), cpu.get("CPU part", "")))
    return cpu.get("model name") or cpu.get("Model") or known or "unknown"


def _features(cpu: dict[str, str]) -> Check:
    flags = set((cpu.get("flags") or cpu.get("Features") or "").split())
    if not flags:
        return Check(AREA, "instructions", NOTE, "unknown: the system does not tell them")
    names = _ARM if "Features" in cpu else _X86
    found = [*dict.fromkeys(title for flag, title in names.items() if flag in flags)]
    least = "NEON" if names is _ARM else "AVX2"
    if least not in found:
        return Check(
            AREA, "instructions", NOTE, ", ".join(found) or "none of those that matter",
            f"without {least} networks are several times slower on this processor",
        )  # fmt: skip
    return Check(AREA, "instructions", OK, ", ".join(found))


def _allowed(system: System) -> int:
    """Processors that this process may run on."""
    listed = system.fields("/proc/self/status").get("Cpus_allowed_list", "")
    count = 0
    for part in filter(None, listed.split(",")):
        first, _, last = part.partition("-")
        if not (first.isdecimal() and (last or first).isdecimal()):
            count = 0
            break
        count += int(last or first) - int(first) + 1
    # Processors that the system could have and has not are in the list too.
    online = (system.text("/proc/cpuinfo") or "").count("processor\t")
    if count and online:
        return min(count, online)
    return count or online or (os.cpu_count() or 1)


def _threads(system: System, usable: int) -> Check:
    allowed, quota = _allowed(system), cgroup.processors(system)
    limited = quota is not None and quota < allowed
    finding = f"{usable} usable"
    if limited:
        finding += f" of {allowed}: the control group allows {quota:.3g} processors"
    if usable < DEFAULT_THREADS:
        return Check(
            AREA, "threads", NOTE, finding,
            f"commands start {DEFAULT_THREADS} threads, which would wait for each other",
            "give csd-generate --threads 1",
        )  # fmt: skip
    return Check(AREA, "threads", NOTE if limited else OK, finding)


def _load(system: System, usable: int) -> Check:
    first = (system.text("/proc/loadavg") or "").split(" ")[0]
    try:
        average = float(first)
    except ValueError:
        return Check(AREA, "load", NOTE, "unknown: the system does not tell it")
    if average > usable:
        return Check(
            AREA, "load", NOTE, f"{average:.2f} on {usable} threads",
            "other programs keep the processor busy: everything is slower, and figures of "
            "csd-bench do not repeat",
        )  # fmt: skip
    return Check(AREA, "load", OK, f"{average:.2f}")
