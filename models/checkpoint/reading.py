"""Read weights: what a file holds, under the names of a model, as float32."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...runtime.errors import WeightsError
from .files import WeightFiles
from .fit import check_finite
from .names import unwrapped
from .sets import Kind, WeightSet, choose, kind_of, tensors_of, walker

# What is converted over one mapping of a file, whose pages stay with it: a share of all that is
# converted, but not so little that opening the file takes longer than reading it.
_PORTIONS = 16
_LEAST_PORTION, _MOST_PORTION = 4 << 20, 64 << 20


@dataclass(frozen=True)
class Weights:
    """One set of weights of a file: which it is, and its tensors as they lie there.

    Attributes:
        path: what was given.
        kind: `ema` or `model`; None where the file does not say.
        key: the set's name in the file; empty where there is but one, without a name.
        note: why it is not the averages, where the file has a place for them.
        tensors: by name without wrappers; mapped, in the file's own types.
        origin: the name, or the place in a list, of each in the file.
        arguments: of the training script, where the file keeps them.
    """

    path: Path
    kind: Kind | None
    key: str
    note: str
    tensors: Mapping[str, Tensor]
    origin: Mapping[str, str | int]
    arguments: Mapping[str, Any]
    _files: WeightFiles
    _place: tuple[str, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that the tensors lie in."""
        return tuple(self._files.forms)

    def described(self) -> str:
        """Which weights these are, for people."""
        if self.kind is None and not self.key:
            return "the file's one set of weights"
        what = {"ema": "averaged weights", "model": "weights of the model", None: "weights"}
        return f"{what[self.kind]} ({self.key}){self.note}"

    def renamed(self, names: Mapping[str, str]) -> Weights:
        """Return those of the tensors that `names` names, `{new: old}`."""
        return dataclasses.replace(
            self,
            tensors={new: self.tensors[old] for new, old in names.items()},
            origin={new: self.origin[old] for new, old in names.items()},
        )

    def check_plain(self) -> None:
        """Check that the tensors are plain numbers.

        Raises:
            WeightsError: one is complex, quantised or sparse.
        """
        for name, tensor in self.tensors.items():
            if tensor.is_complex() or tensor.is_quantized or tensor.layout != torch.strided:
                raise WeightsError(
                    f"{self.path}: {name} is complex, quantised or sparse: give the weights as "
                    "plain floats"
                )

    def float32(self) -> dict[str, Tensor]:
        """Return the tensors as float32, contiguous.

        Those that are float32 stay mapped: reading them needs no memory that the system cannot
        take back. Others are converted in portions, each over a mapping that ends with it.

        Raises:
            WeightsError: as for `check_plain`.
            BackendError, OSError: as `WeightFiles.content`.
        """
        self.check_plain()
        ready: dict[str, Tensor] = {}
        for portion in self._mapped():
            for name, tensor in portion.items():
                ready[name] = tensor.detach().to(torch.float32).contiguous()
        return {name: ready[name] for name in self.tensors}

    def check_finite(self) -> None:
        """Check that all values are finite; none of them stays in memory.

        Raises:
            WeightsError: names the first tensor that has others.
            BackendError, OSError: as `WeightFiles.content`.
        """
        for portion in self._mapped():
            check_finite(portion, self.path)

    def _mapped(self) -> Iterator[dict[str, Tensor]]:
        """All tensors: those that `float32` returns as they are, then portions of the others.

        Each portion is of a mapping that ends with it, so that what was read of it leaves memory.
        """
        kept = {
            name: tensor
            for name, tensor in self.tensors.items()
            if tensor.dtype == torch.float32 and tensor.is_contiguous()
        }
        yield kept
        others = [name for name in self.tensors if name not in kept]
        for portion in _portions(others, self.tensors):
            held: Any = walker(self._place)(self._files.content())
            if isinstance(held, Mapping):
                held = tensors_of(held)
            yield {name: held[self.origin[name]] for name in portion}


def _portions(names: Sequence[str], tensors: Mapping[str, Tensor]) -> Iterator[list[str]]:
    total = sum(tensors[name].nbytes for name in names)
    most = min(max(total // _PORTIONS, _LEAST_PORTION), _MOST_PORTION)
    portion: list[str] = []
    size = 0
    for name in names:
        if portion and size + tensors[name].nbytes > most:
            yield portion
            portion, size = [], 0
        portion.append(name)
        size += tensors[name].nbytes
    if portion:
        yield portion


def read_weights(
    path: str | Path,
    wanted: str | None = None,
    *,
    landmark: str = "",
    others: bool = False,
    order: Callable[[], Sequence[str]] = tuple,
) -> Weights:
    """Find the weights in what was given, without reading them.

    Args:
        path: a file (safetensors, or of `torch.save`; its name does not count), an index of
            shards, or a folder with either.
        wanted: `ema`, `model`, a key of the file, or None for averages where there are any.
        landmark: a name that the model has (`names.unwrapped`).
        others: what lies beside the model under other prefixes is left out.
        order: returns the names of the model's parameters in order, for averages that are a list
            in a file without the model's own weights.

    Raises:
        WeightsError: there are no such weights, or no way to tell which were meant.
        BackendError, OSError: as `WeightFiles.content`.
    """
    path = Path(path)
    files = WeightFiles.find(path)
    content = files.content()
    chosen = choose(content, wanted, path)
    if isinstance(chosen.tensors, Mapping):
        prefix = len(chosen.prefix)
        given: dict[str, str | int] = {name[prefix:]: name for name in chosen.tensors}
        held = {name[prefix:]: tensor for name, tensor in chosen.tensors.items()}
    else:
        names = _names_of_list(content, chosen, order, path)
        given = {name: place for place, name in enumerate(names)}
        held = dict(zip(names, chosen.tensors, strict=True))
    found = Weights(
        path, chosen.kind, chosen.key, _absent(content, chosen), held, given, _arguments(content),
        files, chosen.place,
    )  # fmt: skip
    return found.renamed(unwrapped(held, path, landmark, others=others))


def read_state_dict(path: str | Path, wanted: str | None = None) -> dict[str, Tensor]:
    """Read tensors by name, as float32. Arguments and errors as for `read_weights`."""
    return read_weights(path, wanted).float32()


def _names_of_list(
    content: object, chosen: WeightSet, order: Callable[[], Sequence[str]], path: Path
) -> list[str]:
    """Names of averages that are a list: those of the model's weights beside them, in order.

    MAR's training, as others, averages a list of the model's parameters.
    """
    shapes = [tensor.shape for tensor in chosen.tensors if isinstance(tensor, Tensor)]
    beside = _model_beside(content)
    names = list(beside) if beside else list(order())
    if len(names) != len(shapes):
        counted = f"the model beside it has {len(names)}" if names else "no names are beside it"
        raise WeightsError(
            f"{path}: {chosen.key} is a list of {len(shapes)} tensors, and {counted}: give "
            "--weights model for the weights that are not averaged"
        )
    for name, shape in zip(names, shapes, strict=True):
        if beside and beside[name].shape != shape:
            raise WeightsError(
                f"{path}: {chosen.key} is a list in another order than the model's parameters "
                f"({name} is {list(beside[name].shape)}, there {list(shape)}): give --weights "
                "model for the weights that are not averaged"
            )
    return names


def _model_beside(content: object) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        for name, value in content.items():
            if isinstance(name, str) and kind_of(name) == "model" and isinstance(value, Mapping):
                return tensors_of(value)
    return {}


def _absent(content: object, chosen: WeightSet) -> str:
    """What to say where the model's weights were taken and the place of averages is empty."""
    if chosen.kind != "model" or not isinstance(content, Mapping):
        return ""
    none = [name for name, value in content.items() if isinstance(name, str) and value is None]
    empty = [name for name in none if kind_of(name) == "ema"]
    return f"; {empty[0]} is empty" if empty else ""


def _arguments(content: object) -> Mapping[str, Any]:
    args: object = content.get("args") if isinstance(content, Mapping) else None
    if isinstance(args, argparse.Namespace):
        return vars(args)
    return args if isinstance(args, dict) and all(isinstance(k, str) for k in args) else {}


def names_in(weights: Iterable[str], most: int = 4) -> str:
    """The first of some names, for messages."""
    names = list(weights)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" * (len(names) > most))
