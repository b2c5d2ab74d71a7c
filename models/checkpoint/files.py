"""What was given as weights to the tensors in it: one file, an index of shards, or a folder.

Tensors are mapped: their bytes are read when they are used, and a file's other tensors never are.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor

from ...runtime.command.memory_errors import is_memory_error, out_of_memory
from ...runtime.command.strict_json import parse_json
from ...runtime.command.text import plain, shown
from ...runtime.errors import WeightsError
from .content import AGAIN, Form, form_of, unreadable
from .pickles import read_pickle

_INDEX = ".index.json"
_WEIGHTS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.\w+)")


@dataclass(frozen=True)
class WeightFiles:
    """The files that weights lie in.

    Attributes:
        given: the path that was asked for, for messages.
        forms: of each file, in order of name.
        places: file of each tensor, as an index has it; empty without one.
    """

    given: Path
    forms: dict[Path, Form]
    places: dict[str, Path]

    @classmethod
    def find(cls, path: Path) -> WeightFiles:
        """Find the files of a path.

        Raises:
            WeightsError: there is nothing there, it is something else than weights, a folder does
                not say which of its files they are, or a shard is missing.
            OSError: it cannot be opened.
        """
        given = path
        if path.is_dir():
            found = _of_folder(path)
            if len(found) > 1:
                return cls(given, {shard: form_of(shard) for shard in found}, {})
            (path,) = found
        if not path.is_file():
            raise WeightsError(f"no weights at {path}: give the path of a .pth or .safetensors "
                               "file, or of a folder of them")  # fmt: skip
        form = form_of(path)
        if form != "index":
            return cls(given, {path: form}, {})
        places = _read_index(path)
        shards = sorted(set(places.values()))
        missing = next((shard for shard in shards if not shard.is_file()), None)
        if missing is not None:
            raise WeightsError(
                f"{path} names {missing.name}, which is not beside it: fetch all of its "
                f"{len(shards)} files"
            )
        return cls(given, {shard: form_of(shard) for shard in shards}, places)

    def content(self) -> object:
        """Return what the files hold, tensors mapped anew: what was read of them is let go with
        the last tensor.

        Raises:
            WeightsError: a file is damaged, or shards hold other tensors than their index says.
            BackendError: there is too little memory.
            OSError: a file cannot be opened.
        """
        if len(self.forms) == 1 and not self.places:
            ((path, form),) = self.forms.items()
            return _content(path, form)
        return self._joined()

    def _joined(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for path, form in self.forms.items():
            shard = _content(path, form)
            if not isinstance(shard, dict):
                raise unreadable(path, "is no shard: it holds no tensors by name")
            for name, tensor in shard.items():
                if self.places and self.places.get(str(name)) != path:
                    continue
                if name in tensors:
                    raise WeightsError(f"{self.given}: two shards hold {shown(name)}: {AGAIN}")
                tensors[str(name)] = tensor
        lacking = next((name for name in self.places if name not in tensors), None)
        if lacking is not None:
            raise WeightsError(
                f"{self.places[lacking]} lacks {shown(lacking)}, which its index promises: {AGAIN}"
            )
        return tensors


def _content(path: Path, form: Form) -> Any:
    if form != "safetensors":
        return read_pickle(path, mapped=form == "zip")
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise WeightsError(
            "reading safetensors needs safetensors: pip install safetensors"
        ) from error
    try:
        with safe_open(path, framework="pt") as stored:
            return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except OSError:
        raise
    except Exception as error:
        if is_memory_error(error):
            raise out_of_memory(f"reading {path}", error, "give one model at a time") from error
        raise unreadable(path, f"is damaged ({plain(str(error), 120)})") from error


def _of_folder(folder: Path) -> list[Path]:
    """The one index of a folder, the one file of weights, or all shards of one set."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    indices = [path for path in files if path.name.endswith(_INDEX)]
    weights = [path for path in files if path.suffix.casefold() in _WEIGHTS]
    for found in (indices, weights):
        if len(found) == 1 and not _SHARD.fullmatch(found[0].name):
            return found
    shards = [match for path in weights if (match := _SHARD.fullmatch(path.name))]
    sets = Counter((m[1], m[3], m[4]) for m in shards)
    if not indices and len(sets) == 1 and len(shards) == len(weights):
        ((_, count, _), held) = next(iter(sets.items()))
        if held != int(count):
            raise WeightsError(f"{folder} holds {held} of {int(count)} shards: fetch all of them")
        return weights
    names = ", ".join(shown(path.name, 40) for path in (indices or weights)[:6])
    if not names:
        raise WeightsError(f"{folder} holds no weights: give a folder with safetensors or a file")
    raise WeightsError(f"{folder} holds several files of weights: give one of {names}")


def _read_index(path: Path) -> dict[str, Path]:
    table = parse_json(path.read_text(encoding="utf-8"))["weight_map"]
    if not isinstance(table, dict) or not table:
        raise unreadable(path, "is an index of no tensors")
    places: dict[str, Path] = {}
    for name, file in table.items():
        plain_name = isinstance(file, str) and file and PurePosixPath(file).name == file
        if not plain_name or file in (".", ".."):
            raise unreadable(path, f"names a shard {shown(file)}, which is no file beside it")
        places[name] = path.parent / file
    return places
