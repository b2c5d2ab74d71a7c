"""What the product uses of the vendor's packages, read from its source.

An expression that holds a vendor's object is known by its name (`HOLDERS`), by a call of something
known whose result is (`RETURNS`), or by an assignment of one of these. A parameter or a value of
type `Any` in the files that use TensorRT must be in one of the tables or in `NOT_ITS`, so that a
new one is not passed over.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("export", "plugins", "runtime", "tools")
MODULE = ""  # the class of the package itself

# Files that hold TensorRT's objects: expression -> class.
TENSORRT = {
    "runtime/backends/tensorrt/binding.py": {
        "module": MODULE,
        "self.module": MODULE,
        "self._runtime": "Runtime",
        "context": "IExecutionContext",
        "handle": "ICudaEngine",
        "engine.handle": "ICudaEngine",
        "config": "IRuntimeConfig",
        "kernels": "DynamicShapesKernelSpecializationStrategy",
        "types": "DataType",
        "c": "IPluginCreatorV3One",
    },
    "runtime/backends/tensorrt/kernel_cache.py": {"cache": "IRuntimeCache"},
    "export/engines/builder.py": {
        "library": MODULE,
        "self.library": MODULE,
        "builder": "Builder",
        "network": "INetworkDefinition",
        "parser": "OnnxParser",
        "config": "IBuilderConfig",
        "profile": "IOptimizationProfile",
        "layer": "ILayer",
        "error": "ParserError",
    },
    "export/engines/operator_plugins.py": {"parser": "OnnxParser"},
}
RETURNS = {
    (MODULE, "get_plugin_registry"): "IPluginRegistry",
    (MODULE, "Runtime"): "Runtime",
    (MODULE, "Builder"): "Builder",
    (MODULE, "OnnxParser"): "OnnxParser",
    ("INetworkDefinition", "get_input"): "ITensor",
    ("INetworkDefinition", "get_layer"): "ILayer",
}


@dataclass(frozen=True)
class Use:
    """A name that the product uses.

    Attributes:
        holder: class that has it, "" for the package.
        name: of the member.
        positional: arguments of a call; None where it is not called here, or they are spread.
        keywords: of a call.
        asked: the product asks whether it is there, and does without where it is not.
        where: file and line.
    """

    holder: str
    name: str
    positional: int | None
    keywords: tuple[str, ...]
    asked: bool
    where: str


def tensorrt_uses(classes: set[str]) -> Iterator[Use]:
    """Uses of `tensorrt` and `tensorrt_rtx`, given the classes that the packages have."""
    for name, holders in TENSORRT.items():
        yield from _Reader(name, holders, classes).uses()


class _Reader:
    def __init__(self, name: str, holders: dict[str, str], classes: set[str]) -> None:
        self._name, self._holders, self._classes = name, holders, classes
        self._tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))

    def uses(self) -> Iterator[Use]:
        asked = {
            (self._class_of(node.args[0]), node.args[1].value)
            for node in ast.walk(self._tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            and node.func.id in ("getattr", "hasattr") and len(node.args) > 1
            and isinstance(node.args[1], ast.Constant)
        }  # fmt: skip
        calls = {id(n.func): n for n in ast.walk(self._tree) if isinstance(n, ast.Call)}
        for node in ast.walk(self._tree):
            if isinstance(node, ast.ClassDef):
                yield from self._overridden(node)
            if not isinstance(node, ast.Attribute):
                continue
            holder = self._class_of(node.value)
            if holder is None or node.attr.startswith("__"):
                continue
            call = calls.get(id(node))
            spread = call is None or any(isinstance(a, ast.Starred) for a in call.args)
            keywords = () if call is None else tuple(k.arg for k in call.keywords if k.arg)
            yield Use(
                holder, node.attr, None if spread else len(call.args), keywords,
                (holder, node.attr) in asked, f"{self._name}:{node.lineno}",
            )  # fmt: skip
        for holder, name in asked:
            if holder is not None:
                yield Use(holder, name, None, (), True, self._name)

    def _overridden(self, node: ast.ClassDef) -> Iterator[Use]:
        """Methods that a class of ours has in place of the vendor's."""
        for base in node.bases:
            if isinstance(base, ast.Attribute) and self._class_of(base.value) == MODULE:
                for method in node.body:
                    if isinstance(method, ast.FunctionDef) and method.name != "__init__":
                        count = len(method.args.args) - 1
                        where = f"{self._name}:{method.lineno}"
                        yield Use(base.attr, method.name, count, (), False, where)

    def _class_of(self, node: ast.expr) -> str | None:
        """Class of what an expression holds, or None where it is not the vendor's."""
        known = self._holders.get(ast.unparse(node))
        if known is not None:
            return known
        if isinstance(node, ast.Attribute) and node.attr in self._classes:
            return node.attr if self._class_of(node.value) == MODULE else None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            holder = self._class_of(node.func.value)
            return None if holder is None else RETURNS.get((holder, node.func.attr))
        return None


def cuda_uses() -> Iterator[Use]:
    """Uses of `cuda.bindings.runtime`, whose names are like no others: `cudaMalloc`."""
    for path in _files():
        where = str(path.relative_to(ROOT))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and _is_cuda(node.attr):
                if isinstance(node.value, ast.Attribute) and _is_cuda(node.value.attr):
                    yield Use(node.value.attr, node.attr, None, (), False, f"{where}:{node.lineno}")
                else:
                    yield Use(MODULE, node.attr, None, (), False, f"{where}:{node.lineno}")
            if not isinstance(node, ast.Call):
                continue
            if isinstance(node.func, ast.Attribute) and _is_cuda(node.func.attr):
                yield _cuda_call(node.func.attr, node.args, where, node)
            elif node.args and isinstance(node.args[0], ast.Constant):
                name = node.args[0].value
                if isinstance(name, str) and _is_cuda(name):  # self._call("cudaMalloc", size)
                    yield _cuda_call(name, node.args[1:], where, node)


def _cuda_call(name: str, arguments: list[ast.expr], where: str, node: ast.Call) -> Use:
    spread = any(isinstance(argument, ast.Starred) for argument in arguments)
    count = None if spread else len(arguments)
    return Use(MODULE, name, count, (), False, f"{where}:{node.lineno}")


def _is_cuda(name: str) -> bool:
    return re.fullmatch(r"cuda[A-Z]\w*", name) is not None


# Expressions that hold an object of cuda.core, in every file.
CUDA_CORE = {
    "core": MODULE,
    "loaded.core": MODULE,
    "device": "Device",
    "code": "ObjectCode",
    "stream": "Stream",
}
CUDA_CORE_FILES = ("plugins/launch.py",)


def cuda_core_uses(classes: set[str]) -> Iterator[Use]:
    """Uses of `cuda.core`."""
    for name in CUDA_CORE_FILES:
        yield from _Reader(name, CUDA_CORE, classes).uses()


def files_that_import(package: str) -> set[str]:
    """Files of the product that import a package, or name it as one to import."""
    pattern = rf"^\s*(?:import|from) {re.escape(package)}\b|import_module\(\"{re.escape(package)}"
    return {
        str(path.relative_to(ROOT))
        for path in _files()
        if re.search(pattern, path.read_text(encoding="utf-8"), re.MULTILINE)
    }


def _files() -> Iterator[Path]:
    for folder in FOLDERS:
        yield from sorted((ROOT / folder).rglob("*.py"))


def untyped(name: str) -> dict[str, int]:
    """Parameters of type `Any` in a file that have attributes taken: name -> line."""
    tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
    found: dict[str, int] = {}
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        arguments = [*function.args.args, *function.args.kwonlyargs]
        unknown = {
            a.arg
            for a in arguments
            if isinstance(a.annotation, ast.Name) and a.annotation.id == "Any"
        }
        for node in ast.walk(function):
            if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
                continue
            if node.value.id in unknown:
                found[node.value.id] = node.lineno
    return found
