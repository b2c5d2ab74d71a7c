from __future__ import annotations

import os
from pathlib import Path

import pytest

from csd.runtime.device import DeviceInfo
from csd.runtime.errors import BackendError
from csd.tools.doctor.check import NOTE, OK, PROBLEM, Check
from csd.tools.doctor.machine import cgroup
from csd.tools.doctor.machine.gpu import gpu_checks
from csd.tools.doctor.machine.jetson import jetson_checks
from csd.tools.doctor.machine.memory import (
    LEAST_MEMORY,
    available_memory,
    disk_checks,
    memory_checks,
)
from csd.tools.doctor.machine.processor import processor_checks, usable_threads
from csd.tools.doctor.machine.system import System

from .machines import CONTAINER, DESKTOP, OLD_CONTAINER, ORIN, system

MACHINES = {"orin": ORIN, "desktop": DESKTOP, "container": CONTAINER, "old": OLD_CONTAINER}


def named(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def no_device() -> tuple[DeviceInfo, ...]:
    raise BackendError("no CUDA driver here (libcuda.so.1 is not found): install NVIDIA's driver")


@pytest.mark.parametrize(
    ("machine", "name", "instructions", "threads"),
    [
        ("orin", "Arm Cortex-A78AE", "NEON, fp16, dotprod", 8),
        ("desktop", "13th Gen Intel(R) Core(TM) i7-13700K", "AVX2, VNNI", 4),
        ("container", "AMD EPYC 9R14", "AVX2, AVX-512, VNNI, bf16", 2),
        ("old", "AMD EPYC 9R14", "AVX2, AVX-512, VNNI, bf16", 1),
    ],
)
def test_the_processor_is_what_the_system_tells(machine, name, instructions, threads, tmp_path):
    here = system(tmp_path, MACHINES[machine])
    found = named(processor_checks(here))
    assert found["name"].finding == name
    assert found["instructions"] == Check("processor", "instructions", OK, instructions)
    assert usable_threads(here) == threads
    assert found["threads"].finding.startswith(f"{threads} usable")


def test_a_limit_of_processors_is_a_note_and_one_thread_has_its_option(tmp_path):
    limited = named(processor_checks(system(tmp_path / "a", CONTAINER)))["threads"]
    assert limited.state == NOTE
    assert limited.finding == "2 usable of 15: the control group allows 1.5 processors"
    single = named(processor_checks(system(tmp_path / "b", OLD_CONTAINER)))["threads"]
    assert (single.state, single.remedy) == (NOTE, "give csd-generate --threads 1")
    free = named(processor_checks(system(tmp_path / "c", CONTAINER, cpu_max="max 100000\n")))
    assert (free["threads"].state, free["threads"].finding) == (OK, "15 usable")


def test_the_least_limit_on_the_way_up_counts(tmp_path):
    files = {
        **CONTAINER,
        "/proc/self/cgroup": "0::/outer/inner\n",
        "/sys/fs/cgroup/outer/cpu.max": "50000 100000\n",
        "/sys/fs/cgroup/outer/inner/cpu.max": "max 100000\n",
    }
    assert cgroup.processors(system(tmp_path, files)) == 0.5


def test_a_group_named_with_dots_leaves_no_folder(tmp_path):
    files = {**CONTAINER, "/proc/self/cgroup": "0::/../../../../etc\n"}
    assert cgroup.processors(system(tmp_path, files)) == 1.5


def test_a_load_above_the_threads_is_a_note(tmp_path):
    found = named(processor_checks(system(tmp_path, DESKTOP)))["load"]
    assert (found.state, found.finding) == (NOTE, "9.10 on 4 threads")
    assert "do not repeat" in found.reason


def test_a_processor_without_the_instructions_that_matter_says_so(tmp_path):
    old = {**DESKTOP, "/proc/cpuinfo": "processor\t: 0\nmodel name\t: Old\nflags\t: sse2 avx\n"}
    found = named(processor_checks(system(tmp_path, old)))["instructions"]
    assert (found.state, found.finding) == (NOTE, "none of those that matter")
    assert "AVX2" in found.reason


def test_memory_is_what_the_group_leaves_files_aside(tmp_path):
    here = system(tmp_path, CONTAINER)
    left = 536870912 - (430000000 - 200000000)
    assert available_memory(here) == left
    (check,) = memory_checks(here)
    assert check.state == OK
    assert check.finding.endswith(f"has {left / 1e6:.0f} MB left of 537 MB")


def test_too_little_memory_for_the_libraries_is_a_problem(tmp_path):
    (check,) = memory_checks(system(tmp_path, OLD_CONTAINER))
    assert check.state == PROBLEM
    assert f"about {LEAST_MEMORY / 1e6:.0f} MB" in check.reason
    assert "raise the container's limit" in check.remedy


def test_a_cache_that_cannot_be_written_is_a_note_with_the_variable(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CSD_CACHE_DIR", str(tmp_path / "file" / "below"))
    (check,) = disk_checks(None)
    assert check.state == NOTE
    assert check.remedy == "export CSD_CACHE_DIR=DIR, of a folder that you may write to"
    monkeypatch.setenv("CSD_CACHE_DIR", str(tmp_path / "not" / "made"))
    (followed, bundle) = disk_checks(tmp_path)
    assert [followed.state, bundle.state] == [OK, OK]
    assert not (tmp_path / "not").exists()


def test_a_jetson_tells_release_power_mode_and_clocks(tmp_path):
    found = named(jetson_checks(system(tmp_path, ORIN)))
    assert found["board"].finding == "NVIDIA Jetson Orin NX Engineering Reference Developer Kit"
    assert found["release"] == Check("Jetson", "release", OK, "Jetson Linux 36.4.3, of JetPack 6")
    assert found["power mode"].finding == "2 (15W)"
    assert found["power mode"].remedy == "sudo nvpmodel -m 0"
    assert found["clocks"].finding == "GPU 306 of 918 MHz, CPU 730 of 1984 MHz"
    assert found["clocks"].remedy == "sudo jetson_clocks"


def test_a_jetson_at_full_power_has_nothing_to_mend(tmp_path):
    changes = {"status": "pmode:0000", "cur_freq": "918000000", "scaling_cur_freq": "1984000"}
    files = {name: text for name, text in ORIN.items() if ".vic" not in name}
    checks = jetson_checks(system(tmp_path, files, **changes))
    assert [check.state for check in checks] == [OK] * 4


@pytest.mark.parametrize(
    ("text", "state", "finding"),
    [
        ("# R35 (release), REVISION: 4.1, GCID: 1", NOTE, "Jetson Linux 35.4.1, of JetPack 5"),
        ("# R99 (release), REVISION: 1.0, GCID: 1", OK, "Jetson Linux 99.1.0"),
        ("something else", NOTE, "unknown: /etc/nv_tegra_release has another form"),
    ],
)
def test_other_releases_are_told_too(text, state, finding, tmp_path):
    found = named(jetson_checks(system(tmp_path, ORIN, nv_tegra_release=text)))["release"]
    assert (found.state, found.finding) == (state, finding)


def test_what_is_no_jetson_is_not_looked_at_as_one(tmp_path):
    assert jetson_checks(system(tmp_path, DESKTOP)) == []


def test_devices_drivers_and_toolkits_are_told(tmp_path):
    devices = (
        DeviceInfo("NVIDIA GeForce RTX 4090", "8.9", "linux-x86_64", "12.4", 24 << 30),
        DeviceInfo("NVIDIA GeForce RTX 3060", "8.6", "linux-x86_64", "12.4", 12 << 30),
    )
    found = named(gpu_checks(system(tmp_path / "a", DESKTOP), lambda: devices))
    assert found["driver"].finding == "550.54.14"
    assert found["device 0"].finding == (
        "NVIDIA GeForce RTX 4090, sm_89, 25.8 GB; the driver runs CUDA 12.4"
    )
    assert found["device 1"].finding.endswith("csd runs on the first device")
    orin = named(gpu_checks(system(tmp_path / "b", ORIN), no_device))
    assert orin["CUDA toolkit"].finding == "12.6.11"


def test_a_machine_without_a_gpu_has_a_note_alone(tmp_path):
    (check,) = gpu_checks(system(tmp_path, CONTAINER), no_device)
    assert check == Check(
        "GPU", "devices", NOTE, "none; graphs run on the processor",
        "no CUDA driver here (libcuda.so.1 is not found)", "install NVIDIA's driver",
    )  # fmt: skip


def test_a_system_that_tells_nothing_is_no_error(tmp_path):
    empty = System(tmp_path)
    checks = [*processor_checks(empty), *memory_checks(empty), *jetson_checks(empty)]
    checks += gpu_checks(empty, no_device)
    assert {check.state for check in checks} <= {OK, NOTE}
    assert available_memory(empty) is None
    assert usable_threads(empty) == os.cpu_count()


@pytest.mark.parametrize("files", MACHINES.values(), ids=[*MACHINES])
def test_files_that_hold_nonsense_are_no_error(files, tmp_path):
    for number, nonsense in enumerate(("", "\0\xff", "-1", "9" * 400, "a: b\n:\n", "[" * 5000)):
        root = system(tmp_path / str(number), dict.fromkeys(files, nonsense))
        checks = [*processor_checks(root), *memory_checks(root), *jetson_checks(root)]
        checks += gpu_checks(root, no_device)
        assert checks


def test_a_closed_file_and_a_folder_in_its_place_are_as_absent(tmp_path):
    here = system(tmp_path, CONTAINER)
    (tmp_path / "proc/meminfo").unlink()
    (tmp_path / "proc/meminfo").mkdir()
    assert here.text("/proc/meminfo") is None
    assert here.names("/proc/loadavg") == []
    assert System().own
    assert not System(Path("/tmp")).own
