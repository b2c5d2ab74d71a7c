"""Files of machines that are not here, in the form in which their systems write them."""

from __future__ import annotations

from pathlib import Path

from csd.tools.doctor.machine.system import System

_ORIN_CPU = "\n".join(
    f"processor\t: {number}\nBogoMIPS\t: 62.50\n"
    "Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm "
    "lrcpc dcpop asimddp uscat ilrcpc flagm paca pacg\n"
    "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0xd42\n"
    "CPU revision\t: 1\n"
    for number in range(8)
)
_DESKTOP_CPU = "\n".join(
    f"processor\t: {number}\nvendor_id\t: GenuineIntel\n"
    "model name\t: 13th Gen Intel(R) Core(TM) i7-13700K\n"
    "flags\t\t: fpu vme sse sse2 avx fma avx2 bmi2 avx_vnni vaes\n"
    for number in range(4)
)
_SERVER_CPU = "\n".join(
    f"processor\t: {number}\nmodel name\t: AMD EPYC 9R14\n"
    "flags\t\t: avx2 avx512f avx512_vnni avx512_bf16\n"
    for number in range(16)
)

ORIN = {
    "/proc/cpuinfo": _ORIN_CPU,
    "/proc/self/status": "Name:\tpython3\nCpus_allowed:\tff\nCpus_allowed_list:\t0-7\n",
    "/proc/self/cgroup": "0::/user.slice/user-1000.slice/session-3.scope\n",
    "/proc/loadavg": "0.42 0.30 0.21 1/512 4242\n",
    "/proc/meminfo": "MemTotal:       15823984 kB\nMemAvailable:   12500000 kB\n",
    "/proc/device-tree/model": "NVIDIA Jetson Orin NX Engineering Reference Developer Kit\0",
    "/etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, "
    "EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025\n# KERNEL_VARIANT: oot\n",
    "/etc/nvpmodel.conf": "< PARAM TYPE=FILE NAME=CPU_ONLINE >\n"
    "< POWER_MODEL ID=0 NAME=MAXN >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=2 NAME=15W >\n",
    "/var/lib/nvpmodel/status": "pmode:0002 fmode:quiet\n",
    "/sys/class/devfreq/17000000.gpu/cur_freq": "306000000\n",
    "/sys/class/devfreq/17000000.gpu/max_freq": "918000000\n",
    "/sys/class/devfreq/15340000.vic/cur_freq": "1\n",
    "/sys/class/devfreq/15340000.vic/max_freq": "2\n",
    "/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "729600\n",
    "/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "1984000\n",
    "/usr/local/cuda/version.json": '{"cuda": {"name": "CUDA SDK", "version": "12.6.11"}}',
}
DESKTOP = {
    "/proc/cpuinfo": _DESKTOP_CPU,
    "/proc/self/status": "Cpus_allowed_list:\t0-3\n",
    "/proc/self/cgroup": "0::/user.slice\n",
    "/proc/loadavg": "9.10 3.00 1.00 2/900 77\n",
    "/proc/meminfo": "MemTotal:       65000000 kB\nMemAvailable:   40000000 kB\n",
    "/proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  "
    "Thu Feb 22 01:44:30 UTC 2024\nGCC version:  gcc version 12.3.0\n",
}
CONTAINER = {
    "/proc/cpuinfo": _SERVER_CPU,
    "/proc/self/status": "Cpus_allowed_list:\t0,2-15\n",
    "/proc/self/cgroup": "0::/\n",
    "/proc/loadavg": "0.10 0.10 0.10 1/50 9\n",
    "/proc/meminfo": "MemTotal:       130000000 kB\nMemAvailable:   90000000 kB\n",
    "/sys/fs/cgroup/cpu.max": "150000 100000\n",
    "/sys/fs/cgroup/memory.max": "536870912\n",
    "/sys/fs/cgroup/memory.current": "430000000\n",
    "/sys/fs/cgroup/memory.stat": "anon 100000000\ninactive_file 200000000\n",
}
# Version 1: a path of the host's, whose own files lie at the top of what is mounted.
OLD_CONTAINER = {
    "/proc/cpuinfo": _SERVER_CPU,
    "/proc/self/status": "Cpus_allowed_list:\t0-15\n",
    "/proc/self/cgroup": "4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n",
    "/proc/loadavg": "0.10 0.10 0.10 1/50 9\n",
    "/proc/meminfo": "MemTotal:       130000000 kB\nMemAvailable:   90000000 kB\n",
    "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
    "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes": "134217728\n",
    "/sys/fs/cgroup/memory/memory.usage_in_bytes": "100000000\n",
}


def system(folder: Path, files: dict[str, str], **changes: str) -> System:
    """Write the files of a machine below a folder; `changes` by the last part of a name."""
    root = System(folder)
    for name, text in files.items():
        text = changes.get(name.rpartition("/")[2].replace(".", "_"), text)
        path = root.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root
