"""The tables that `csd-inspect` prints, each made of the JSON values that it also writes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from ...runtime.command.text import plain, shown

_HASH = 12  # of 64 digits: enough to tell files apart
_MOST_VALUE = 60
_MOST_NAMES = 12


def bundle_tables(values: Mapping[str, Any]) -> Iterator[Table]:
    """The tables of a bundle (`description.describe`)."""
    yield _pairs("bundle", _bundle_rows(values))
    yield _models(values)
    yield _sampling(values)
    yield _graphs(values)
    yield _tensors(values)
    if values["engines"]:
        yield _engines(values)
    if values["calibration"] is not None:
        yield from _calibration(values["calibration"])
    if values["presets"]:
        yield _presets(values)
    yield _sources(values)
    yield _files(values)


def graph_tables(values: Mapping[str, Any]) -> Iterator[Table]:
    """The tables of a graph (`description.graph_values`)."""
    opsets = ", ".join(f"{plain(n, 80)} {version}" for n, version in values["opsets"].items())
    weights = ", ".join(
        f"{row['parameters']:,} {name} ({_bytes(row['bytes'])})"
        for name, row in values["dtypes"].items()
    )
    external = ", ".join(f"{plain(n, 80)} ({_bytes(s)})" for n, s in values["external"].items())
    yield _pairs(
        f"{values['graph']} [{values['precision']}] of {values['name']}",
        {
            "operator sets": opsets,
            "format": f"ONNX IR {values['ir_version']}, written by {plain(values['producer'])}",
            "nodes": f"{values['nodes']}, of {len(values['operators'])} operators",
            "parameters": f"{values['parameters']:,}",
            "weights": weights or "none",
            "in other files": external or "none",
            "files": ", ".join(f"{n} {d[:_HASH]}" for n, d in values["files"].items()),
            "bytes": _bytes(values["bytes"]),
            "parity": _parity(values["parity"]),
            "dimensions": _profile(values["profile"]),
        },
    )
    bindings = _table("bindings", "tensor", "direction", "type", "shape")
    for side in ("inputs", "outputs"):
        for tensor in values[side]:
            bindings.add_row(tensor["name"], side[:-1], tensor["dtype"], _shape(tensor["shape"]))
    yield bindings
    operators = _table("operators", "operator", ">nodes")
    for name, count in values["operators"].items():
        operators.add_row(plain(name, 80), str(count))
    yield operators
    if "layers" in values:
        yield _layers(values["layers"])


def difference_tables(values: Mapping[str, Any]) -> Iterator[Table]:
    """The table of what differs (`difference.compare`); none where nothing does."""
    if values["same"]:
        return
    table = _table("what differs", "field", "change", "a", "b")
    for change in values["changes"]:
        absent = {"added": "a", "removed": "b"}.get(change["change"])
        sides = ("" if side == absent else _value(change[side]) for side in ("a", "b"))
        table.add_row(plain(change["field"], 160), change["change"], *sides)
    yield table


def _bundle_rows(values: Mapping[str, Any]) -> dict[str, str]:
    names = values["class_names"]
    limits = values["limits"]
    return {
        "name": values["name"],
        "path": plain(values["path"]),
        "manifest": f"{values['manifest_sha256']}, schema {values['manifest_schema']}",
        "bytes": f"{_bytes(values['bytes'])} in {len(values['files'])} files",
        "made with": ", ".join(f"{n} {v}" for n, v in values["created_by"].items()) or "unknown",
        "precisions": ", ".join(values["precisions"]) or "none whole",
        "limits": f"{limits['max_batch']} images, gamma {limits['max_gamma']}",
        "classes": "no names" if names is None else _some(names),
    }


def _models(values: Mapping[str, Any]) -> Table:
    table = _table(
        "models", "role", "family", ">parameters", "counted in", ">tokens", ">channels",
        ">classes", "image", ">encoder", ">decoder", ">head",
    )  # fmt: skip
    for role, row in values["models"].items():
        sizes = (_sizes(row[part]) for part in ("encoder", "decoder", "head"))
        table.add_row(
            role, row["family"], f"{row['parameters']:,}", row["counted_in"], str(row["tokens"]),
            str(row["token_channels"]), str(row["classes"]), row["image"], *sizes,
        )  # fmt: skip
    table.caption = "encoder, decoder, head: depth x width"
    table.caption_justify = "left"
    return table


def _sizes(part: Sequence[int]) -> str:
    """Depth, width and, of a transformer, heads."""
    depth, width, *heads = part
    return f"{depth} x {width}" + (f", {heads[0]} heads" if heads else "")


def _sampling(values: Mapping[str, Any]) -> Table:
    table = _table(
        "schedule and sampling, where a run does not say", "role", ">head steps", "betas",
        "sampler", ">AR steps", "mask schedule", "guidance", "guided while left",
    )  # fmt: skip
    for role, row in values["sampling"].items():
        low, high = row["cfg_interval"]
        table.add_row(
            role, str(row["head_steps"]), row["beta_schedule"], row["sampler"],
            str(row["num_iter"]), row["mask_schedule"], row["cfg_schedule"], f"{low:g} to {high:g}",
        )  # fmt: skip
    return table


def _graphs(values: Mapping[str, Any]) -> Table:
    table = _table("graphs", "graph", "precision", ">bytes", "parity", "hash", "dimensions")
    for name, precisions in values["graphs"].items():
        for precision, row in precisions.items():
            digests = [digest[:_HASH] for digest in row["files"].values()]
            table.add_row(
                name, precision, _bytes(row["bytes"]) if digests else "engine only",
                _parity(row["parity"]), " ".join(digests), _profile(row["profile"]),
            )  # fmt: skip
    return table


def _tensors(values: Mapping[str, Any]) -> Table:
    """Inputs and outputs, in the first precision of each graph: shapes are those of all."""
    table = _table("inputs and outputs", "graph", "inputs", "outputs")
    for name, precisions in values["graphs"].items():
        row = next(iter(precisions.values()))
        sides = (
            ", ".join(f"{t['name']} {t['dtype']} {_shape(t['shape'])}" for t in row[side])
            for side in ("inputs", "outputs")
        )
        table.add_row(name, *sides)
    return table


def _engines(values: Mapping[str, Any]) -> Table:
    table = _table(
        "engines", "graph", "precision", "library", "target", "platform", ">bytes", ">built in",
        "profile", "file",
    )  # fmt: skip
    for row in values["engines"]:
        table.add_row(
            row["graph"], row["precision"], f"{row['backend']} {row['library']}",
            ", ".join(row["architectures"]), row["platform"], _bytes(row["size"]),
            f"{row['build_seconds']:.1f} s", _profile(row["profile"]), row["file"],
        )  # fmt: skip
    return table


def _calibration(calibration: Mapping[str, Any]) -> Iterator[Table]:
    yield _pairs(
        "calibration",
        {
            "file": f"{calibration['file']}, {_bytes(calibration['bytes'])}",
            "fitted at": f"{calibration['head_steps']} head steps, {calibration['tokens']} tokens",
            "cost of a row": f"{calibration['row_cost']:.3g} calls",
        },
    )
    counts = next(iter(calibration["survival"].values()), {})
    table = _table(
        "chance that so many drafted transitions are all accepted", "model", "from head steps",
        *(f">{count}" for count in counts),
    )  # fmt: skip
    for role, rows in calibration["survival"].items():
        for begin, end in _tenths(calibration["head_steps"]):
            means = [sum(row[begin:end]) / (end - begin) for row in rows.values()]
            steps = f"{end - 1} to {begin}" if end - begin > 1 else str(begin)
            table.add_row(role, steps, *(f"{100 * m:.0f}%" for m in means))
    yield table


def _tenths(steps: int) -> list[tuple[int, int]]:
    """The head steps from the noise on, in up to ten parts."""
    parts = min(10, steps)
    ends = [round(steps * part / parts) for part in range(parts + 1)]
    return [*itertools.pairwise(ends)][::-1]


def _presets(values: Mapping[str, Any]) -> Table:
    table = _table(
        "presets", "name", "precision", "options", "evidence", ">worse by", ">at most", ">margin",
        ">images", ">s an image", ">target's", "on",
    )  # fmt: skip
    for name, row in values["presets"].items():
        why = row["evidence"]
        options = ", ".join(f"{k} {_value(v)}" for k, v in row["options"].items() if v is not None)
        table.add_row(
            name, row["precision"] or "any", options, why["metric"], f"{why['drop']:.3g}",
            f"{why['most']:.3g}", f"{why['margin']:.3g}", str(why["images"]),
            f"{why['seconds']:.3g}", f"{why['baseline_seconds']:.3g}",
            f"{why['backend']}, {why['machine']}, {why['date']}",
        )  # fmt: skip
    return table


def _sources(values: Mapping[str, Any]) -> Table:
    table = _table("where weights came from", "of", "file", "weights", "key", "SHA-256")
    for role, row in values["sources"].items():
        table.add_row(
            role, row["path"], row["weights"] or "the only set", row["key"] or "", row["sha256"]
        )
    return table


def _files(values: Mapping[str, Any]) -> Table:
    table = _table("files", "file", ">bytes", "SHA-256")
    for name, row in values["files"].items():
        table.add_row(name, f"{row['bytes']:,}", row["sha256"])
    return table


def _layers(layers: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("layers", ">", "name", "operator", "within", "inputs", "outputs")
    for index, row in enumerate(layers):
        sides = (", ".join(map(_layer_tensor, row[side])) for side in ("inputs", "outputs"))
        names = (plain(row[key], 80) for key in ("name", "operator", "within"))
        table.add_row(str(index), *names, *sides)
    return table


def _layer_tensor(tensor: Mapping[str, Any]) -> str:
    name = plain(tensor["name"], 80)
    return name if tensor["shape"] is None else f"{name} {_shape(tensor['shape'])}"


def _pairs(title: str, rows: Mapping[str, str]) -> Table:
    table = _table(title, "", "")
    table.show_header = False
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _table(title: str, *columns: str) -> Table:
    """A table; a column whose name begins with `>` holds numbers."""
    table = Table(title=title, box=None, padding=(0, 2, 0, 0), title_justify="left")
    for column in columns:
        right = column.startswith(">")
        table.add_column(column.removeprefix(">"), justify="right" if right else "left")
    return table


def _shape(shape: Iterable[Any]) -> str:
    return f"[{', '.join('?' if d is None else plain(str(d), 40) for d in shape)}]"


def _profile(profile: Mapping[str, Sequence[int]]) -> str:
    return ", ".join(f"{name} {low}:{usual}:{most}" for name, (low, usual, most) in profile.items())


def _parity(parity: Mapping[str, Any] | None) -> str:
    if parity is None:
        return "not compared"
    most = parity["max_rel"]
    figure = "not finite" if most is None else f"{most:.1e}"
    return f"{'pass' if parity['passed'] else 'FAIL'}, {figure} of {parity['tolerance']:.0e}"


def _some(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _value(value: Any) -> str:
    return plain(value, _MOST_VALUE) if isinstance(value, str) else shown(value, _MOST_VALUE)


def _bytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 100_000 else f"{size:,} bytes"
