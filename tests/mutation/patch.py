"""Puts a changed file in the place of the one that runs: its live function, or the whole module."""

from __future__ import annotations

import ast
import functools
import gc
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def module_name(path: Path) -> str:
    """Name that a file of the checkout is imported by."""
    return "csd." + ".".join(path.relative_to(ROOT).with_suffix("").parts)


class Replaced(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Finds one module that has not been imported yet, whose source is a given tree."""

    def __init__(self, path: Path, tree: ast.Module) -> None:
        self._path, self._tree = path, tree

    def find_spec(self, fullname, path=None, target=None):
        if fullname != module_name(self._path):
            return None
        return importlib.util.spec_from_file_location(fullname, self._path, loader=self)

    def get_filename(self, fullname):
        return str(self._path)

    def get_data(self, path):
        return Path(path).read_bytes()

    def get_code(self, fullname):
        return compile(self._tree, str(self._path), "exec")


def patch_function(path: Path, tree: ast.Module, scope: Sequence[str]) -> None:
    """Give the live function that is or is around `scope` what the tree says of it.

    Its module was imported as it stands in the file, and everybody holds its functions: they stay
    and get other code and other defaults. What ran when it was imported is not run again.
    """
    module = sys.modules[module_name(path)]
    changed = ModuleType(module.__name__)
    changed.__dict__.update(__file__=module.__file__, __package__=module.__package__)
    exec(compile(tree, str(path), "exec"), changed.__dict__)
    live, other = _function(module, scope), _function(changed, scope)
    live.__code__ = other.__code__
    live.__defaults__, live.__kwdefaults__ = other.__defaults__, other.__kwdefaults__


def _function(place: Any, scope: Sequence[str]) -> FunctionType:
    """The outermost function of some names."""
    for name in scope:
        place = vars(place)[name]
        for inner in ("__func__", "fget", "func", "__wrapped__"):
            place = getattr(place, inner, place)
        if isinstance(place, FunctionType):
            return place
    raise LookupError(f"no function in {'.'.join(scope)}")


def keepers() -> list[Any]:
    """Functions of csd and of its tests that keep what they returned."""
    return [
        kept
        for kept in gc.get_objects()
        if isinstance(kept, functools._lru_cache_wrapper)
        and (module := getattr(kept, "__module__", None) or "") != "tests.kept"
        and module.split(".")[0] in ("csd", "tests")
    ]
