from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from importlib.metadata import entry_points, metadata, requires
from pathlib import Path

import pytest

from .helpers import ROOT, run_python

# `csd` itself, a regular package: a folder named csd where Python starts does not hide it.
ROOT_PACKAGE = ("runtime", "root")
FOLDERS = ("export", "models", "plugins", "runtime", "tools")

# What each folder may import of the others, and which heavy libraries.
ARROWS = {
    "plugins": set(),
    "runtime": {"plugins"},
    "models": {"runtime"},
    "export": {"models", "runtime", "plugins"},
    "tools": {"export", "models", "runtime", "plugins"},
}
RUNTIME_MODULES_FOR_MODELS = {"config", "schedule", "errors", "command"}
FOREIGN = {
    "plugins": {"numpy", "cuda", "onnx", "tensorrt"},  # all but numpy inside functions only
    "runtime": {"numpy", "onnxruntime", "tensorrt", "tensorrt_rtx", "cuda", "nvtx", "PIL", "rich"},
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
    }
    assert places == {"runtime/backends/onnx_library.py"}


def test_the_runtime_never_mentions_an_import_of_torch():
    for folder in ("runtime", "plugins"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            assert "import torch" not in text, path
            assert "import_module" not in text, path


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


@pytest.mark.parametrize("module", ["csd.export.cli", "csd.runtime.cli", "csd.tools.bench.cli"])
def test_help_of_a_command_loads_no_network_library(module):
    code = (
        f"import sys; from {module} import build_parser; build_parser().format_help(); "
        "print(*sorted({'torch', 'onnxruntime', 'onnx', 'matplotlib'} & set(sys.modules)))"
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
    assert "mode eager needs torch: pip install torch" in done.stderr


def test_commands_and_metadata_are_those_of_the_project():
    assert metadata("csd")["Name"] == "csd"
    assert metadata("csd")["License-Expression"] == "Apache-2.0"
    scripts = {e.name: e.value for e in entry_points(group="console_scripts") if "csd" in e.value}
    assert {"csd-export", "csd-generate", "csd-bench"} <= set(scripts)
    for value in scripts.values():
        module, function = value.split(":")
        assert (ROOT / Path(*module.split(".")[1:])).with_suffix(".py").is_file()
        assert function == "main"


def test_the_runtime_needs_three_libraries_and_backends_are_extras():
    needed = requires("csd") or []
    hard = {line.split(">")[0].strip() for line in needed if "extra ==" not in line}
    assert hard == {"numpy", "pillow", "rich"}
    extras = set(metadata("csd").get_all("Provides-Extra") or ())
    assert {"cpu", "gpu", "tensorrt", "rtx", "export", "tools", "dev"} <= extras


@pytest.mark.slow
def test_images_are_generated_in_an_environment_without_torch(tiny_bundle, tmp_path):
    # The checkout is called csd and lies where Python starts: it must not hide what is installed.
    source, environment = tmp_path / "csd", tmp_path / "venv"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    python = environment / "bin" / "python"

    def run(*argv: object) -> str:
        done = subprocess.run(
            [str(part) for part in argv], capture_output=True, text=True, cwd=tmp_path, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(sys.executable, "-m", "venv", environment)
    run(python, "-m", "pip", "install", "--quiet", f"{source}[cpu]")
    find = "import importlib.util as u; print(u.find_spec('torch'), u.find_spec('csd').origin)"
    torch_spec, _ = run(python, "-c", find).split()
    assert torch_spec == "None"
    where = run(python, "-c", "import csd.runtime; print(csd.runtime.__file__)").strip()
    assert Path(where).is_relative_to(environment)
    if shutil.which("g++"):
        find = "from csd.plugins import host; print(host.find_library())"
        assert Path(run(python, "-c", find).strip()).is_relative_to(environment)

    argv = [tiny_bundle, "--labels", "3,7", "--num-iter", 8, "--quiet"]
    argv += ["--mode", "csd", "--gamma", 2, "--head", "sequential"]
    files = ["--out", tmp_path / "x.png", "--stats", tmp_path / "x.json"]
    shown = run(environment / "bin" / "csd-generate", *argv, *files)
    assert "2 images in" in shown
    assert (tmp_path / "x.png").stat().st_size > 100
    assert '"acceptance_rate"' in (tmp_path / "x.json").read_text(encoding="utf-8")
