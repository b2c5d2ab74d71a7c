"""Manifests altered at random: a valid bundle or an error of ours, and no file outside is read.

Of those that are valid all is shown, as `csd-inspect` does.
"""

from __future__ import annotations

import copy
import io
import json
import random
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from .answers import Case, own_folder
from .paths import BAD, ENGINE, OUTSIDE, left_bundle
from .place import Place
from .watch import opened_files

QUICK, ALL = 300, 10_000
MOST_CHARACTERS = 800
# Of the bundles that are valid all the same, this share is opened as a session too.
SESSIONS = 0.1
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 7, 1000, 2**31, 2**63, 10**400, 0.5, -0.0, 1e308, float("nan"),
    float("inf"), "", " ", "x", "B", "S + 1", "float32", "int64", "fp32", "\x1b[31m", "\n", "\0",
    "\ud800", "x" * 10_000, [], {}, [[]], {"": None}, [0, 1, 2], ["B"], "0" * 64, "decoder",
    "target.backbone", "decoder.onnx", "target_backbone.onnx", "calibration.npz",
)  # fmt: skip


def cases(place: Place, everything: bool) -> Iterator[Case]:
    """A number of manifests, the same in every run."""
    text = (place.bundle / "manifest.json").read_text(encoding="utf-8")
    values = json.loads(text)
    values["engines"] = [{**ENGINE, "file": "x.engine"}]
    paths = tuple(path.replace("{}", str(place.folder / OUTSIDE)).replace("{n}", "decoder.onnx")
                  for path in BAD)  # fmt: skip
    for seed in range(ALL if everything else QUICK):
        rng = random.Random(seed)
        basis = values if rng.random() < 0.2 else json.loads(text)
        made = _altered(basis, rng, (*VALUES, *paths))
        yield Case(f"manifest {seed}", lambda made=made, rng=rng: _fault(place, made, rng))


def _fault(place: Place, manifest: bytes, rng: random.Random) -> str | None:
    from rich.console import Console

    from csd.runtime import Bundle, CsdError
    from csd.tools.inspect.description import describe
    from csd.tools.inspect.difference import compare
    from csd.tools.inspect.tables import bundle_tables

    shown = Console(file=io.StringIO(), markup=False, highlight=False, width=10_000)
    with ExitStack() as stack:
        bundle = stack.enter_context(place.copy())
        (bundle / "manifest.json").write_bytes(manifest)
        folder = stack.enter_context(own_folder(place.folder))
        opened = stack.enter_context(opened_files())
        try:
            found = Bundle.open(bundle)
            values = describe(found)
            for table in bundle_tables(values):
                shown.print(table)
            json.dumps(compare(values, values), allow_nan=False)
            if rng.random() < SESSIONS:
                found.session(threads=1).close()
        except CsdError as error:
            message = str(error)
            if len(message) >= MOST_CHARACTERS or not message.isprintable():
                return f"a message of {len(message)} characters: {message[:300]!r}"
        except Exception as error:
            return f"{error!r}"[:300]
        strange = left_bundle(place, bundle, folder, opened)
        return f"opened {strange}" if strange else None


def _altered(values: Any, rng: random.Random, bad: tuple[Any, ...]) -> bytes:
    """Return a manifest with one to three alterations, of its values or of its bytes."""
    values = copy.deepcopy(values)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        _alter(values, rng, bad)
    text = json.dumps(values).encode()
    if rng.random() < 0.15:
        at = rng.randrange(len(text))
        text = rng.choice((text[:at], text[:at] + rng.randbytes(3) + text[at:],
                           text[:at] + text[at + 1 :], text + text[:at]))  # fmt: skip
    return text


def _alter(values: Any, rng: random.Random, bad: tuple[Any, ...]) -> None:
    parent, key = rng.choice(_nodes(values))
    match rng.choice(("set", "set", "set", "remove", "add", "twice", "swap")):
        case "set":
            parent[key] = copy.deepcopy(rng.choice(bad))
        case "remove":
            del parent[key]
        case "add" if isinstance(parent, dict):
            name = rng.choice(bad)
            parent[name if isinstance(name, str) else "extra"] = copy.deepcopy(parent[key])
        case "twice" if isinstance(parent, list):
            parent.append(copy.deepcopy(parent[key]))
        case _:
            other, name = rng.choice(_nodes(values))
            parent[key] = copy.deepcopy(other[name])


def _nodes(values: Any) -> list[tuple[Any, Any]]:
    """All places of a value, as container and key."""
    found: list[tuple[Any, Any]] = []
    left = [values]
    while left:
        node = left.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node))
        found += [(node, key) for key in keys]
        left += [node[key] for key in keys if isinstance(node[key], dict | list)]
    return found
