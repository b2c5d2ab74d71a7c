"""Bad exports: weights, configurations and decoders that are none, or do not fit each other."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..helpers import DATA, tiny_config
from .answers import Case, ask, own_folder, tree
from .place import Place, no_work

State = dict[str, Any]
ROLES = {"target": "target.pth", "draft": "draft.pth", "decoder": "vae.ckpt"}
# Values that no number of a configuration may have.
BAD_NUMBERS = (0, -1, 2**31, 10**30, 1.5, math.nan, math.inf, None, "x", True, [], {})


class _Runs:
    """What would run a command where a pickle is trusted."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("open('was-run', 'w')",)


def cases(place: Place, everything: bool) -> Iterator[Case]:
    """All bad exports."""
    for role in ROLES:
        for name, make in {**_bytes(role), **_states(role)}.items():
            yield _case(place, f"{role}: {name}", role, make)
        if role != "decoder":
            for name, make in _safetensors(role).items():
                yield _case(place, f"{role}.safetensors: {name}", role, make, ".safetensors")
    for role in ("target", "draft"):
        for name, text in _configs(role, everything):
            yield _case(place, f"{role}'s configuration: {name}", f"{role}_config",
                        lambda path, text=text: path.write_bytes(text), ".json")  # fmt: skip


def _case(
    place: Place, name: str, option: str, make: Callable[[Path], object], suffix: str = ""
) -> Case:
    def fault() -> str | None:
        from csd.export.cli import main

        with own_folder(place.folder) as folder, no_work():
            path = folder / f"wrong{suffix or Path(ROLES[option]).suffix}"
            make(path)
            before = tree(folder)
            answer = ask(
                main, [*place.models(**_without(option), **{option: path}), "--out=bundle"]
            )
            if tree(folder) != before:
                return f"left behind: {tree(folder)}"
            return answer.fault((2,))

    return Case(name, fault)


def _without(option: str) -> dict[str, None]:
    """The models that a case does not need."""
    none = dict.fromkeys(("draft", "draft_config", "decoder"))
    return {name: None for name in none if name.partition("_")[0] != option.partition("_")[0]}


def _bytes(role: str) -> dict[str, Callable[[Path], object]]:
    raw = (DATA / ROLES[role]).read_bytes()
    return {
        "missing": lambda path: None,
        "a folder": lambda path: path.mkdir(),
        "empty": lambda path: path.write_bytes(b""),
        "text": lambda path: path.write_bytes(b"weights\n"),
        "null bytes": lambda path: path.write_bytes(bytes(10_000)),
        "half": lambda path: path.write_bytes(raw[: len(raw) // 2]),
        "without its last byte": lambda path: path.write_bytes(raw[:-1]),
        "its end alone": lambda path: path.write_bytes(raw[len(raw) // 2 :]),
        "a pickle": lambda path: path.write_bytes(pickle.dumps({"model": 1})),
        "a pickle that runs a command": lambda path: path.write_bytes(pickle.dumps(_Runs())),
        "a checkpoint that runs a command": lambda path: _save({"model": _Runs()}, path),
        "a link to nothing": lambda path: path.symlink_to("gone"),
    }  # fmt: skip


def _states(role: str) -> dict[str, Callable[[Path], object]]:
    """Checkpoints that can be read."""
    import torch

    def changed(change: Callable[[State], object]) -> Callable[[Path], object]:
        def make(path: Path) -> None:
            state = _load(role)
            change(state)
            _save({"model": state}, path)

        return make

    def first(value: float) -> Callable[[State], object]:
        def change(state: State) -> None:
            name = _some(state)
            state[name] = state[name].clone()
            state[name].view(-1)[0] = value

        return change

    others = [name for name in ROLES if name != role]
    return {
        "not a number": changed(first(math.nan)),
        "infinite": changed(first(math.inf)),
        "below all numbers": changed(first(-math.inf)),
        "without a tensor": changed(lambda state: state.pop(_some(state))),
        "with a tensor of another shape": changed(
            lambda state: state.update({_some(state): torch.zeros(3, 5)})
        ),
        "with a scalar": changed(lambda state: state.update({_some(state): torch.tensor(1.0)})),
        "with text for a tensor": changed(lambda state: state.update({_some(state): "x"})),
        "with complex numbers": changed(
            lambda state: state.update({_some(state): state[_some(state)].to(torch.complex64)})
        ),
        "with a sparse tensor": changed(
            lambda state: state.update({_some(state): state[_some(state)].to_sparse()})
        ),
        "of nothing": changed(lambda state: state.clear()),
        "a list": lambda path: _save([1, 2], path),
        "a tensor": lambda path: _save(torch.zeros(3), path),
        "without a model": lambda path: _save({"epoch": 3}, path),
        "a model of numbers": lambda path: _save({"model": {1: 2}}, path),
        **{f"weights of the {other}": lambda path, other=other: path.write_bytes(
            (DATA / ROLES[other]).read_bytes()) for other in others},
    }  # fmt: skip


def _safetensors(role: str) -> dict[str, Callable[[Path], object]]:
    from safetensors.torch import save

    raw = save({name: tensor.contiguous().clone() for name, tensor in _load(role).items()})
    header = int.from_bytes(raw[:8], "little")
    return {
        "empty": lambda path: path.write_bytes(b""),
        "half": lambda path: path.write_bytes(raw[: len(raw) // 2]),
        "a header beyond the file": lambda path: path.write_bytes(b"\xff" * 8 + raw[8:]),
        "a header that is cut": lambda path: path.write_bytes(raw[: header // 2]),
        "a header that is no JSON": lambda path: path.write_bytes(raw[:8] + b"?" + raw[9:]),
        "a checkpoint of PyTorch": lambda path: path.write_bytes(
            (DATA / ROLES[role]).read_bytes()),
    }  # fmt: skip


def _configs(role: str, everything: bool) -> Iterator[tuple[str, bytes]]:
    values = tiny_config(role).to_dict()
    yield from {
        "empty": b"", "text": b"mar_base", "a list": b"[]", "a number": b"3", "null": b"null",
        "cut": json.dumps(values).encode()[:-2], "deep": b"[" * 100_000, "deep objects":
        b'{"a":' * 100_000, "not UTF-8": b'{"img_size": "\xff"}', "null bytes": bytes(100),
        "a number of many digits": b'{"img_size": ' + b"9" * 9000 + b"}",
        "an unknown key": json.dumps({**values, "depth": 3}).encode(),
        "a key that colours": json.dumps({**values, "\x1b[31m": 3}).encode(),
        "a long key": json.dumps({**values, "x" * 9999: 3}).encode(),
    }.items()  # fmt: skip
    if everything:
        yield "nothing in it, which is a large model", b"{}"
    for at, (key, old) in enumerate(values.items()):
        bad = ["x", "\x1b[31m", 3, None, [], {}] if isinstance(old, str) else list(BAD_NUMBERS)
        if isinstance(old, float):
            bad = [value for value in bad if value not in (0, True, 1.5) or value is True]
        for value in bad if everything else [bad[at % len(bad)], bad[(at + 5) % len(bad)]]:
            changed = json.dumps({**values, key: value}).encode()
            yield f"{key} is {value!r}"[:60], changed


def _load(role: str) -> State:
    import torch

    content = torch.load(DATA / ROLES[role], weights_only=True)
    for name in ("model_ema", "model", "state_dict"):
        if name in content:
            return dict(content[name])
    return dict(content)


def _some(state: State) -> str:
    """The name of a large tensor that every such model needs."""
    return max((name for name in state if hasattr(state[name], "numel")),
               key=lambda name: (state[name].numel(), name))  # fmt: skip


def _save(content: Any, path: Path) -> None:
    import torch

    torch.save(content, path)
