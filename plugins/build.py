"""Build what `plugins/kernels/` compiles to: the host library, and cubins for CUDA devices.

    python -m csd.plugins.build --host-only
    python -m csd.plugins.build --out kernels --arch 87,89

Every file is written under a temporary name and renamed. `kernels.json` beside the cubins says what
they were made of and what each kernel needs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

SOURCES = Path(__file__).resolve().parent / "kernels"
# sm_75 is Turing, 80 A100, 86 and 89 GeForce RTX 30 and 40, 87 Jetson Orin, 90 Hopper, 100 B200,
# 110 Jetson Thor, 120 GeForce RTX 50.
ARCHITECTURES = (75, 80, 86, 87, 89, 90, 100, 110, 120)
MANIFEST = "kernels.json"
MANIFEST_VERSION = 1
HOST_LIBRARY = "_host.so"

HOST_SOURCES = ("host.cpp", "head.cpp")
DEVICE_SOURCES = (
    "kernels.cu", "kernels.cuh", "rounds.cuh", "half.h", "token_ops.h", "csd_ops.h", "launch.h",
)  # fmt: skip
# The same as in pyproject.toml: without contraction the results do not depend on the machine.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
HOST_FLAGS = ("-std=c++17", "-O2", "-ffp-contract=off")
DEVICE_FLAGS = ("-std=c++17", "-O3", "-Xptxas", "-v")
COMPILERS = ("c++", "g++", "clang++")
SANITIZERS = ("address", "undefined")

EXIT_ERROR = 2


class BuildError(RuntimeError):
    """Something cannot be built here; one line with the remedy."""


@dataclass(frozen=True)
class Kernel:
    """What the assembler said of one kernel."""

    name: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    code_bytes: int


@dataclass(frozen=True)
class Cubin:
    """A built file and its kernels."""

    arch: int
    file: str
    bytes: int
    sha256: str
    kernels: tuple[Kernel, ...]


def cubin_name(arch: int) -> str:
    """Name of the file that is built for `sm_<arch>`."""
    return f"csd_kernels.sm_{arch}.cubin"


def source_digest() -> str:
    """SHA-256 of what the cubins are made of."""
    digest = hashlib.sha256()
    for name in DEVICE_SOURCES:
        digest.update((SOURCES / name).read_bytes())
    return digest.hexdigest()


def host_compiler() -> list[str]:
    """Return the command of the C++ compiler: `$CXX`, or the first one on the path.

    Raises:
        BuildError: there is none.
    """
    asked = shlex.split(os.environ.get("CXX", ""))
    for command in [asked] if asked else [[name] for name in COMPILERS]:
        if shutil.which(command[0]):
            return command
    missing = asked[0] if asked else ", ".join(COMPILERS)
    raise BuildError(
        f"no C++ compiler found ({missing}): apt install g++, or set CXX; csd runs without the "
        "host library, more slowly"
    )


def find_nvcc() -> str:
    """Return the path of nvcc: `$CUDA_HOME/bin`, the path, or the usual place.

    Raises:
        BuildError: there is none.
    """
    home = os.environ.get("CUDA_HOME")
    places = [f"{home}/bin/nvcc"] if home else ["nvcc", "/usr/local/cuda/bin/nvcc"]
    found = next(filter(None, map(shutil.which, places)), None)
    if found is None:
        raise BuildError(
            f"nvcc not found ({', '.join(places)}): install the CUDA toolkit (cuda-nvcc-12-6 or "
            "later; JetPack brings it) or set CUDA_HOME, or give --host-only"
        )
    return found


def nvcc_architectures(nvcc: str) -> tuple[int, ...]:
    """Return those of `ARCHITECTURES` that this nvcc compiles for."""
    known = set(map(int, re.findall(r"compute_(\d+)\b", _run([nvcc, "--list-gpu-arch"]))))
    return tuple(arch for arch in ARCHITECTURES if arch in known)


def parse_architectures(text: str) -> tuple[int, ...]:
    """Return the architectures of `--arch`: numbers with commas, `sm_` before them or not.

    Raises:
        BuildError: one of them is not known.
    """
    parts = [part.strip().removeprefix("sm_") for part in text.split(",") if part.strip()]
    names = {str(arch): arch for arch in ARCHITECTURES}
    unknown = [part for part in parts if part not in names]
    if unknown or not parts:
        raise BuildError(
            f"unknown architecture {', '.join(unknown) or repr(text)}: "
            f"choose from {', '.join(names)}"
        )
    return tuple(dict.fromkeys(names[part] for part in parts))


def build_host(path: Path, sanitize: Sequence[str] = ()) -> Path:
    """Compile the host library to `path`.

    Args:
        path: the library's file.
        sanitize: sanitizers to build in, of `SANITIZERS`.

    Raises:
        BuildError: there is no compiler, or it fails.
    """
    extra = ["-g", "-fno-sanitize-recover=all", f"-fsanitize={','.join(sanitize)}"]
    with _renamed_to(path) as partial:
        _run(
            [
                *host_compiler(), *HOST_FLAGS, "-shared", "-fPIC", *(extra if sanitize else ()),
                *(str(SOURCES / name) for name in HOST_SOURCES), "-o", str(partial),
            ]
        )  # fmt: skip
    return path


def build_cubin(out: Path, arch: int, nvcc: str, flags: Sequence[str] = ()) -> Cubin:
    """Compile the kernels for `sm_<arch>` into the folder `out`.

    Raises:
        BuildError: nvcc fails.
    """
    path = out / cubin_name(arch)
    with _renamed_to(path) as partial:
        said = _run(
            [
                nvcc, "-cubin", f"-arch=sm_{arch}", *DEVICE_FLAGS, *flags,
                str(SOURCES / "kernels.cu"), "-o", str(partial),
            ]
        )  # fmt: skip
        image = partial.read_bytes()
    digest = hashlib.sha256(image).hexdigest()
    return Cubin(arch, path.name, len(image), digest, parse_usage(said, code_sizes(image)))


def build_ptx(path: Path, arch: int, nvcc: str) -> Path:
    """Compile the kernels to PTX, which drivers translate for `arch` and everything after it.

    Raises:
        BuildError: nvcc fails.
    """
    with _renamed_to(path) as partial:
        source = str(SOURCES / "kernels.cu")
        _run([nvcc, "-ptx", f"-arch=compute_{arch}", "-std=c++17", source, "-o", str(partial)])
    return path


def parse_usage(said: str, sizes: dict[str, int]) -> tuple[Kernel, ...]:
    """Read what `ptxas -v` printed, by kernel; `sizes` are the bytes of their code."""
    kernels: list[Kernel] = []
    for block in re.split(r"Compiling entry function ", said)[1:]:
        name = block.split("'")[1]
        spilled = re.findall(r"(\d+) bytes spill", block)
        registers, shared = (
            re.search(pattern, block) for pattern in (r"Used (\d+) registers", r"(\d+) bytes smem")
        )
        if registers is None:
            raise BuildError(f"ptxas did not report the registers of {name}: use CUDA 12 or later")
        used = int(shared[1]) if shared else 0
        kernels.append(
            Kernel(name, int(registers[1]), sum(map(int, spilled)), used, sizes.get(name, 0))
        )
    return tuple(sorted(kernels, key=lambda kernel: kernel.name))


def code_sizes(image: bytes) -> dict[str, int]:
    """Bytes of each kernel's code in a cubin: the ELF sections `.text.<kernel>`."""
    if image[:5] != b"\x7fELF\x02":
        raise BuildError("nvcc did not write a 64-bit ELF file: use CUDA 12 or later")
    (offset,) = struct.unpack_from("<Q", image, 40)
    size, count, names = struct.unpack_from("<HHH", image, 58)
    headers = [struct.unpack_from("<IIQQQQ", image, offset + k * size) for k in range(count)]
    strings = headers[names][4]

    def name_of(header: tuple[int, ...]) -> str:
        start = strings + header[0]
        return image[start : image.index(b"\0", start)].decode()

    named = ((name_of(header), header[5]) for header in headers)
    return {name[6:]: length for name, length in named if name.startswith(".text.")}


def build_kernels(
    out: Path, architectures: Sequence[int], nvcc: str, flags: Sequence[str] = ()
) -> tuple[Cubin, ...]:
    """Compile for several architectures, as many at once as there are cores, and note them.

    Raises:
        BuildError: nvcc fails.
    """
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        building = [pool.submit(build_cubin, out, arch, nvcc) for arch in architectures]
        cubins = tuple(future.result() for future in building)
    version = re.search(r"release ([\d.]+)", _run([nvcc, "--version"]))
    manifest = {
        "version": MANIFEST_VERSION,
        "sources_sha256": source_digest(),
        "cuda": version[1] if version else None,
        "cubins": [asdict(cubin) for cubin in cubins],
    }
    with _renamed_to(out / MANIFEST) as partial:
        partial.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return cubins


def format_table(cubins: Sequence[Cubin]) -> str:
    """One line a kernel and architecture."""
    lines = [f"{'kernel':<30}{'arch':>7}{'registers':>11}{'spill bytes':>13}{'code bytes':>12}"]
    for cubin in cubins:
        for k in cubin.kernels:
            numbers = f"{k.registers:>11}{k.spill_bytes:>13}{k.code_bytes:>12}"
            lines.append(f"{k.name:<30}{f'sm_{cubin.arch}':>7}{numbers}")
    lines += [f"{cubin.file}: {cubin.bytes} bytes" for cubin in cubins]
    return "\n".join(lines)


def _run(command: Sequence[str]) -> str:
    """Run a compiler and return all that it printed."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        told = next((line for line in lines if "error" in line or "fatal" in line), "")
        raise BuildError(
            f"{Path(command[0]).name} failed ({told or ' '.join(lines[-1:]) or 'no message'}): "
            f"run it alone to see more: {shlex.join(command)}"
        )
    return done.stdout


@contextmanager
def _renamed_to(path: Path) -> Generator[Path]:
    """Yield a temporary file of the same folder, renamed to `path` if all goes well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=path.parent) as folder:
        partial = Path(folder) / path.name
        yield partial
        os.replace(partial, path)


def _package_library() -> Path:
    """The file that `csd.plugins.host` loads: the one that came with the package, or a new one."""
    folder = Path(__file__).resolve().parent
    return next(iter(sorted(folder.glob("_host*.so"))), folder / HOST_LIBRARY)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_ERROR, f"{self.prog}: error: {message}: see {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `python -m csd.plugins.build`."""
    every = ",".join(map(str, ARCHITECTURES))
    parser = _Parser(
        prog="csd.plugins.build",
        description="Build the host library, and the kernels for CUDA devices.",
        epilog="example: python -m csd.plugins.build --out kernels --arch 87,89",
    )
    add = parser.add_argument
    add(
        "--out", type=Path, metavar="DIR",
        help="folder for the files (default: with --host-only, the installed package)",
    )  # fmt: skip
    add(
        "--arch", metavar="LIST",
        help=f"architectures with commas, of {every} (default: all that nvcc knows)",
    )  # fmt: skip
    add("--ptx", action="store_true", help="also write PTX for the lowest architecture")
    add("--host-only", action="store_true", help="build the host library alone")
    add(
        "--sanitize", metavar="LIST",
        help=f"sanitizers for the host library, of {','.join(SANITIZERS)} (default: none)",
    )  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 2 for an error that the user can mend, 130 or 143.

    A signal ends it as an exception, so that what is half-written is removed.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        with _ended_by_signals():
            _build(args)
    except KeyboardInterrupt as stopped:
        print(f"{parser.prog}: stopped, and nothing half-written is left", file=sys.stderr)
        return 128 + stopped.args[0]
    except (BuildError, OSError) as error:
        print(f"{parser.prog}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_ERROR
    return 0


@contextmanager
def _ended_by_signals() -> Generator[None]:
    """What Ctrl-C does, SIGTERM and SIGHUP do; the exception has the signal's number."""

    def stop(number: int, _frame: object) -> NoReturn:
        raise KeyboardInterrupt(number)

    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _build(args: argparse.Namespace) -> None:
    out: Path | None = args.out
    asked: str | None = args.arch
    sanitize = [part for part in (args.sanitize or "").split(",") if part]
    if unknown := [part for part in sanitize if part not in SANITIZERS]:
        raise BuildError(
            f"unknown sanitizer {', '.join(unknown)}: choose from {', '.join(SANITIZERS)}"
        )
    if out is None and not args.host_only:
        raise BuildError("the kernels need a folder: give --out DIR, or --host-only")
    if out is None and sanitize:
        raise BuildError("a library with sanitizers is not for the package: give --out DIR")
    if args.host_only and (asked or args.ptx):
        raise BuildError("--host-only builds no kernels: leave out --arch and --ptx")
    # Everything that can be wrong is found before anything is compiled.
    architectures = parse_architectures(asked) if asked is not None else ()
    nvcc = "" if args.host_only else find_nvcc()
    if nvcc:
        known = nvcc_architectures(nvcc)
        architectures = architectures or known
        if late := [f"sm_{arch}" for arch in architectures if arch not in known]:
            raise BuildError(
                f"{nvcc} does not know {', '.join(late)}: install a newer CUDA toolkit (12.8 for "
                "sm_100 and sm_120, 13.0 for sm_110), or leave it out of --arch"
            )
    host_compiler()

    library = build_host(out / HOST_LIBRARY if out else _package_library(), sanitize)
    print(f"{library}: {library.stat().st_size} bytes")
    if nvcc and out:
        print(format_table(build_kernels(out, architectures, nvcc)))
        if args.ptx:
            arch = min(architectures)
            ptx = build_ptx(out / f"csd_kernels.compute_{arch}.ptx", arch, nvcc)
            print(f"{ptx.name}: {ptx.stat().st_size} bytes")


if __name__ == "__main__":
    sys.exit(main())
