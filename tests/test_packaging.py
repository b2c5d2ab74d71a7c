from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from importlib.metadata import entry_points, metadata, requires
from pathlib import Path

import pytest
from PIL import Image

from csd.runtime.libraries.packages import DISTRIBUTION, LIBRARIES

from .helpers import ROOT, run_python

# `csd` itself, a regular package: a folder named csd where Python starts does not hide it.
ROOT_PACKAGE = ("runtime", "root")
FOLDERS = ("export", "models", "plugins", "runtime", "tools")
CONSTRAINTS = ROOT / "constraints.txt"
# The extras that the Makefile installs for tests.
INSTALLED_BY_CI = ("cpu", "export", "tools", "dev")
TEXT = {".py", ".md", ".toml", ".h", ".cpp", ".cu", ".cuh", ".txt"}

# What each folder may import of the others, and which heavy libraries.
ARROWS = {
    "plugins": set(),
    "runtime": {"plugins"},
    "models": {"runtime"},
    "export": {"models", "runtime", "plugins"},
    "tools": {"export", "models", "runtime", "plugins"},
}
RUNTIME_MODULES_FOR_MODELS = {"config", "schedule", "errors", "command", "entry"}
FOREIGN = {
    "plugins": {"numpy", "cuda", "onnx", "tensorrt"},  # all but numpy inside functions only
    "runtime": {
        "numpy",
        "onnxruntime",
        "tensorrt",
        "tensorrt_rtx",
        "cuda",
        "nvtx",
        "PIL",
        "rich",
        "argcomplete",
        "cryptography",
    },
}


def _imports(path: Path):
    """Yield each import of a file as the parts of its absolute name."""
    package = ("csd", *path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = [*base, *(node.module.split(".") if node.module else ())]
            yield from ([*stem, alias.name] for alias in node.names)


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_import_only_what_the_design_allows(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        for name in _imports(path):
            where = f"{path.relative_to(ROOT)} imports {'.'.join(name)}"
            if name[0] == "csd":
                assert name[1] == folder or name[1] in ARROWS[folder], where
                if folder == "models" and name[1] == "runtime":
                    assert name[2] in RUNTIME_MODULES_FOR_MODELS, where
            elif folder in FOREIGN and name[0] not in sys.stdlib_module_names:
                assert name[0] in FOREIGN[folder], where


def test_one_place_imports_onnxruntime():
    files = [p for folder in (*FOLDERS, "tests") for p in (ROOT / folder).rglob("*.py")]
    places = {
        path.relative_to(ROOT).as_posix()
        for path in files
        if any(name[0] == "onnxruntime" for name in _imports(path))
        or re.search(r"import_(library|module)\(\"onnxruntime", path.read_text(encoding="utf-8"))
    }
    assert places == {"runtime/backends/onnx_library.py"}


def test_the_runtime_never_mentions_an_import_of_torch():
    for folder in ("runtime", "plugins"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            assert "import torch" not in text, path
            # The entry imports the module that runs, by its own name.
            text = text.replace("return import_module(name).main()", "")
            # Libraries are imported by name in one place, which tells what is wrong with them.
            if path != ROOT / "runtime" / "libraries" / "imports.py":
                assert "import_module(" not in text, path
            assert not re.search(r"import_library\(\"torch", text), path


def test_every_python_folder_is_packaged_and_typed():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("__init__.py"):
            parts = path.parent.relative_to(ROOT).parts
            name = ".".join(("csd", *(() if parts == ROOT_PACKAGE else parts)))
            assert f'"{name}"' in text, name
        assert (ROOT / folder / "py.typed").is_file()


def test_importing_the_runtime_is_quick_and_brings_no_backend():
    code = (
        # Processor time: other tests run beside this one.
        "import sys, time; began = time.process_time(); import csd.runtime; "
        "took = time.process_time() - began; "
        "heavy = {'torch', 'onnxruntime', 'onnx', 'scipy', 'matplotlib', 'rich', 'PIL'}; "
        "print(took, *sorted(heavy & set(sys.modules)))"
    )
    runs = [run_python(code) for _ in range(3)]
    assert [run.stderr for run in runs] == [""] * 3
    outputs = [run.stdout.split() for run in runs]
    best = min(float(output[0]) for output in outputs)
    print(f"import csd.runtime: {best:.3f} s")
    assert best < 0.5
    names = "Bundle, GenerateOptions, GenerateResult, Session, Stats, __version__"
    assert run_python(f"from csd.runtime import {names}; print(__version__)").returncode == 0
    assert [output[1:] for output in outputs] == [[]] * 3


def test_reading_a_bundle_brings_no_backend_of_engines():
    code = (
        "import sys, csd.runtime.session; "
        "print(*(name for name in sys.modules if name.startswith('csd.runtime.backends.tensorrt')))"
    )
    done = run_python(code)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


def test_importing_plugins_brings_numpy_alone():
    names = sorted(path.stem for path in (ROOT / "plugins").glob("*.py") if path.stem != "__init__")
    code = (
        f"import sys, csd.plugins, csd.runtime; from csd.plugins import {', '.join(names)}; "
        "print(*sorted({'onnx', 'onnxruntime', 'tensorrt', 'tensorrt_rtx', 'cuda'} "
        "& set(sys.modules)))"
    )
    done = run_python(code)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


@pytest.mark.parametrize(
    "module",
    [
        "csd.tools.front.cli",
        "csd.export.cli", "csd.runtime.cli", "csd.tools.bench.cli", "csd.tools.eval.cli",
        "csd.tools.doctor.cli", "csd.tools.inspect.cli", "csd.tools.page.cli",
        *(f"csd.tools.eval.commands.{name}" for name in
          ("run", "compare", "gate", "history", "merge", "certify", "tune")),
    ],
)  # fmt: skip
def test_help_of_a_command_loads_no_network_library(module):
    code = (
        f"import sys; from {module} import build_parser; build_parser().format_help(); "
        "heavy = {'torch', 'onnxruntime', 'onnx', 'matplotlib', 'gradio'}; "
        "print(*sorted(heavy & set(sys.modules)))"
    )
    done = run_python(code)
    assert (done.returncode, done.stdout.split()) == (0, [])


def test_bench_runs_without_torch_where_eager_is_not_asked_for(tiny_bundle):
    argv = [str(tiny_bundle), "--modes", "target,csd", "--num-iter", "2", "--repeats", "1"]
    code = (
        "import sys; sys.modules['torch'] = None; from csd.tools.bench.cli import main; "
        f"print(main({[*argv, '--head-steps', '2', '--gammas', '2']}), main({argv[:1]}))"
    )
    done = run_python(code)
    assert done.stdout.split()[-2:] == ["0", "2"], done.stderr
    assert "mode eager needs torch, which is not installed: pip install torch" in done.stderr


def test_commands_and_metadata_are_those_of_the_project():
    assert metadata(DISTRIBUTION)["Name"] == DISTRIBUTION
    assert metadata(DISTRIBUTION)["License-Expression"] == "Apache-2.0"
    scripts = {e.name: e.value for e in entry_points(group="console_scripts") if "csd" in e.value}
    assert {"csd", "csd-export", "csd-generate", "csd-bench", "csd-eval"} <= set(scripts)
    for value in scripts.values():
        module, function = value.split(":")
        assert (ROOT / Path(*module.split(".")[1:])).with_suffix(".py").is_file()
        assert function == "main"


def test_the_runtime_needs_three_libraries_and_backends_are_extras():
    needed = requires(DISTRIBUTION) or []
    hard = {line.split(">")[0].strip() for line in needed if "extra ==" not in line}
    assert hard == {"numpy", "pillow", "rich"}
    extras = set(metadata(DISTRIBUTION).get_all("Provides-Extra") or ())
    assert {"cpu", "gpu", "tensorrt", "rtx", "export", "tools", "dev"} <= extras


def _names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^\w-]", line.strip(), maxsplit=1)[0].lower() for line in requirements}


def _lines(name: str) -> list[str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_no_remedy_and_no_page_installs_the_stranger_of_our_import_name():
    # `csd` on the public index is another project.
    stranger = re.compile(r"csd\[[a-z]|pip install (?:-\S+ )*['\"]?csd\b(?!_edge)")
    files = [p for folder in (*FOLDERS, "docs") for p in (ROOT / folder).rglob("*")]
    files = [*files, *ROOT.glob("*.md"), *ROOT.glob("*.toml")]
    texts = {path: path.read_text("utf-8") for path in files if path.suffix in TEXT}
    assert {
        str(path): hit[0] for path, text in texts.items() if (hit := stranger.search(text))
    } == {}


def test_remedies_name_packages_that_the_project_declares():
    declared = _names(requires(DISTRIBUTION) or [])
    named = re.compile(r"pip install (?:--\S+ )*['\"]?([a-z][\w-]*)")
    found = {
        name
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        for name in named.findall(path.read_text(encoding="utf-8"))
    }
    found |= {name for library in LIBRARIES.values() for name in library.packages}
    assert {"onnxruntime", "tensorrt-rtx", "safetensors", "torch", "pillow"} <= found
    assert found <= declared


def test_what_is_asked_for_is_pinned_for_continuous_integration():
    pinned = _lines("constraints.txt")
    assert all(
        re.match(r"[\w-]+==[\w.]+(; python_version >= \"3\.11\")?$", line) for line in pinned
    )
    own = [line for line in requires(DISTRIBUTION) or [] if _extras(line) & {"", *INSTALLED_BY_CI}]
    assert _names(own) <= _names(pinned)


def _extras(requirement: str) -> set[str]:
    return set(re.findall(r"extra == ['\"](\w+)", requirement)) or {""}


@dataclass(frozen=True)
class Built:
    """Folder of the tree that was built, both distributions, and what building them printed."""

    tree: Path
    source: Path
    wheel: Path
    printed: str


def _run(*argv: object, cwd: Path, **variables: str) -> str:
    """Run a command that must succeed and return what it printed."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [str(part) for part in argv], capture_output=True, text=True, cwd=cwd, check=False,
        env={**environment, "OMP_NUM_THREADS": "1", **variables},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """The Python of a fresh environment."""
    folder = tmp_path_factory.mktemp("fresh")
    _run(sys.executable, "-m", "venv", folder, cwd=folder)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def built(environment, tmp_path_factory) -> Built:
    """A source distribution, and the wheel that is built from it in an environment of its own."""
    # The checkout is called csd and lies where Python starts: it must not hide what is installed.
    tree, out = tmp_path_factory.mktemp("built") / "csd", tmp_path_factory.mktemp("dist")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "build", "*.so", ".*")
    for name in (*FOLDERS, "docker", "docs", "tests"):
        shutil.copytree(ROOT / name, tree / name, ignore=ignored)
    for path in ROOT.iterdir():
        if path.is_file() and (path.name == ".dockerignore" or not path.name.startswith(".")):
            shutil.copy(path, tree)
    _run(environment, "-m", "pip", "install", "--quiet", "-c", CONSTRAINTS, "build", cwd=out)
    printed = _run(environment, "-m", "build", "--outdir", out, tree, cwd=out)
    (source,), (wheel,) = out.glob("csd_edge-*.tar.gz"), out.glob("csd_edge-*.whl")
    return Built(tree, source, wheel, printed)


@pytest.mark.slow
def test_source_and_wheel_are_built_whole_and_without_a_warning(built):
    noisy = re.findall(r"^.*(?:warning|deprecat|experimental|!!).*$", built.printed, re.I | re.M)
    assert noisy == []
    files = {path.relative_to(built.tree) for path in built.tree.rglob("*") if path.is_file()}
    files = {path for path in files if not path.parts[0].endswith((".egg-info", "build"))}
    with tarfile.open(built.source) as archive:
        packed = {Path(*Path(m.name).parts[1:]) for m in archive.getmembers() if m.isfile()}
    assert files - packed == set()
    root = "/".join(ROOT_PACKAGE)
    installed = {path.as_posix() for path in files if path.parts[0] in FOLDERS}
    wanted = {f"csd/{name}".replace(f"csd/{root}/", "csd/") for name in installed}
    with zipfile.ZipFile(built.wheel) as archive:
        names = set(archive.namelist())
        (about,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        description = archive.read(about).decode()
    in_packages = {name for name in names if name.startswith("csd/")}
    compiled = {name for name in in_packages if name.startswith("csd/plugins/_host.")}
    assert in_packages - compiled == wanted
    assert len(compiled) == bool(shutil.which("g++"))
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert (ROOT / "README.md").read_text(encoding="utf-8") in description


@pytest.mark.slow
def test_a_wheel_generates_without_torch_and_alike_without_a_compiler(
    built, environment, tiny_bundle, tmp_path
):
    pip = [environment, "-m", "pip", "install", "--quiet", "-c", CONSTRAINTS]
    command = [environment.parent / "csd-generate", tiny_bundle, "--labels", "3,7", "--quiet"]
    command += ["--num-iter", 8, "--mode", "csd", "--gamma", 2, "--head", "sequential"]
    find = (
        "import importlib.util as u; from csd.plugins import host; "
        "print(u.find_spec('torch'), u.find_spec('csd').origin, host.find_library())"
    )

    def generate(name: str) -> bytes:
        files = ["--out", tmp_path / f"{name}.png", "--stats", tmp_path / f"{name}.json"]
        assert "2 images in" in _run(*command, *files, cwd=built.tree.parent)
        assert '"acceptance_rate"' in (tmp_path / f"{name}.json").read_text(encoding="utf-8")
        with Image.open(tmp_path / f"{name}.png") as image:
            return image.tobytes()

    _run(*pip, f"{built.wheel}[cpu]", cwd=tmp_path)
    torch, origin, library = _run(environment, "-c", find, cwd=built.tree.parent).split()
    assert torch == "None"
    assert Path(origin).is_relative_to(environment.parent.parent)
    if shutil.which("g++"):
        assert Path(library).is_relative_to(environment.parent.parent)
    with_compiler = generate("compiled")

    without = {"CC": "false", "CXX": "false"}
    again = ["--force-reinstall", "--no-deps", "--no-cache-dir", built.source]
    _run(*pip, *again, cwd=tmp_path, **without)
    assert _run(environment, "-c", find, cwd=built.tree.parent).split()[-1] == "None"
    assert generate("plain") == with_compiler


@pytest.mark.slow
def test_a_wheel_runs_the_demo_from_another_folder(built, tmp_path):
    # The libraries are the tests' own, csd is what the wheel brings. Its networks were exported
    # before, from the same sources: PyTorch's exporter is not asked again.
    place, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", place]
    _run(*install, built.wheel, cwd=work)
    short = (
        f"import sys; sys.path.append({str(ROOT)!r}); from tests.exporter import asked_once; "
        "import functools, csd; from csd.tools import demo; "
        "demo.GenerateOptions = functools.partial("
        "demo.GenerateOptions, num_iter=2, head_steps=3); "
        "print(csd.__file__); "
        "argv = ['--out', 'out', '--repeats', '1', '--threads', '1']\n"
        "with asked_once(): raise SystemExit(demo.main(argv))"
    )
    printed = _run(sys.executable, "-c", short, cwd=work, PYTHONPATH=str(place))
    assert Path(printed.splitlines()[0]).is_relative_to(place)
    made = {path.name for path in (work / "out").iterdir()}
    assert made == {"bundle", "demo.json", "demo.png"}
