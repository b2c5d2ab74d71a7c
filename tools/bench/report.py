"""What a bench says: figures as JSON values, and as a table that names what they are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from ...runtime.command.text import listed
from ...runtime.head import native
from ...runtime.session import Session
from ..load import Load, load_caption, load_report
from ..machine import describe_machine
from .cases import EAGER, threads_in_words
from .measure import EVENTS, WALL_CLOCK, Measurement


def make_report(
    results: Sequence[Measurement],
    session: Session,
    *,
    batch: int,
    repeats: int,
    warm_ups: int,
    seed: int,
    load: tuple[Load, Load],
    **more: Any,
) -> dict[str, Any]:
    """Return a bench as JSON values.

    Args:
        results: of the cases.
        session: one that ran some of them.
        batch: images of a run.
        repeats: timed runs of a case.
        warm_ups: runs before those.
        seed: of the first run.
        load: of the machine, before and during.
        more: values beside these.
    """
    threads = sorted({result.case.threads for result in results})
    return {
        "bundle": session.bundle.identity(),
        "batch": batch,
        "repeats": repeats,
        "warm_ups": warm_ups,
        "seed": seed,
        "threads": threads,
        "host_library": native.available(),
        "machine": describe_machine(),
        "backend": {"name": session.backend.name, **session.versions()},
        "load": load_report(*load, max(threads)),
        **more,
        **figures(results, batch),
    }


def best_eager(results: Sequence[Measurement], clock: str) -> Measurement | None:
    """Return the fastest of the `eager` measurements, by a clock: ratios are of that one."""
    rows = [result for result in results if result.case.baseline == EAGER]
    return min(rows, key=lambda row: row.median(clock), default=None)


def figures(results: Sequence[Measurement], batch: int) -> dict[str, Any]:
    """Return the measurements as JSON values, with the clock and the baseline of their ratios.

    The clock is `EVENTS` where all were measured by them: a ratio is of two figures of one clock.
    """
    clock = EVENTS if all(result.device_seconds for result in results) else WALL_CLOCK
    eager = best_eager(results, clock)
    return {
        "clock": clock,
        "ratios_of": None if eager is None else eager.case.name,
        "results": [_row(result, batch, clock, eager) for result in results],
    }


def _row(result: Measurement, batch: int, clock: str, eager: Measurement | None) -> dict[str, Any]:
    on_device = bool(result.device_seconds)
    return {
        "name": result.case.name,
        "baseline": result.case.baseline,
        "threads": result.case.threads,
        "options": None if result.case.baseline else result.case.options.to_dict(),
        "seconds_per_image": result.median(WALL_CLOCK) / batch,
        "seconds_percentiles_10_90": _percentiles(result.seconds),
        "seconds": result.seconds,
        "device_seconds_per_image": result.median(EVENTS) / batch if on_device else None,
        "device_seconds_percentiles_10_90": (
            _percentiles(result.device_seconds) if on_device else None
        ),
        "device_seconds": result.device_seconds if on_device else None,
        "other_processes_cores": result.others,
        "speed_up_over_eager": eager.median(clock) / result.median(clock) if eager else None,
        "acceptance_rate": result.acceptance_rate,
        "accuracy": result.accuracy,
        "accuracy_images": result.accuracy_images,
        "seconds_by_part": result.parts,
        "head_evaluations": result.head_evaluations,
        "head_rounds_per_token": result.head_rounds,
        "head_rows_per_token": result.head_rows,
        "backbone_rows_share": result.backbone_rows_share,
        "refresh_error": result.refresh_error,
        "device_memory_peak_bytes": result.device_memory_peak,
    }


def _percentiles(seconds: list[float]) -> list[float]:
    return [float(p) for p in np.percentile(seconds, (10, 90))]


def by_clock(row: Mapping[str, Any], figure: str, clock: str) -> Any:
    """Return a figure of a row of the report by a clock, as `seconds_per_image`; None without."""
    return row[f"device_{figure}" if clock == EVENTS else figure]


_CLOCKS = {
    EVENTS: "CUDA events before and after each run",
    WALL_CLOCK: "the wall clock, to the end of each run's last wait",
}


def _caption(report: Mapping[str, Any]) -> str:
    lines = [f"s / image and x eager by {_CLOCKS[report['clock']]}"]
    if report["ratios_of"]:
        measured = sum(row["baseline"] == EAGER for row in report["results"])
        best = f", the fastest of {measured}" if measured > 1 else ""
        lines.append(f"x eager is over '{report['ratios_of']}'{best}")
    return "\n".join([*lines, load_caption(report["load"])])


def _local_cells(row: Mapping[str, Any]) -> list[str]:
    """What local AR steps of a row left of the backbone's rows, and their error."""
    share, error = row["backbone_rows_share"], row["refresh_error"]
    return ["" if share is None else f"{share:.0%}", "" if error is None else f"{error:.3f}"]


def results_table(report: Mapping[str, Any]) -> Table:
    """Return the results as a table, whose caption says which clock its figures are of.

    It says too which baseline the ratios are of, and how busy the machine was.
    """
    batch, clock = report["batch"], report["clock"]
    other, name = (WALL_CLOCK, "wall s") if clock == EVENTS else (EVENTS, "device s")
    both = any(row["device_seconds"] for row in report["results"])
    beside = [f"{name} / image"] if both else []
    threads = listed([threads_in_words(count) for count in report["threads"]])
    # Of interest where AR steps were local.
    local = any((row["backbone_rows_share"] or 1) != 1 for row in report["results"])
    rows_of = ["backbone rows", "error"] if local else []
    name_of = report["bundle"]["name"]
    table = Table(title=f"{name_of}, batch {batch}, {threads}", caption=_caption(report))
    table.add_column("mode", no_wrap=True)
    figures_of = ("x eager", *rows_of, "acceptance", "class accuracy")
    for column in ("s / image", "10-90 %", *beside, *figures_of):
        table.add_column(column, justify="right", no_wrap=True)
    for row in report["results"]:
        low, high = by_clock(row, "seconds_percentiles_10_90", clock)
        second = by_clock(row, "seconds_per_image", other)
        speed_up, rate, accuracy = (
            row[key] for key in ("speed_up_over_eager", "acceptance_rate", "accuracy")
        )
        table.add_row(
            row["name"],
            f"{by_clock(row, 'seconds_per_image', clock):.3f}",
            f"{low / batch:.3f}-{high / batch:.3f}",
            *(["" if second is None else f"{second:.3f}"] if both else []),
            "" if speed_up is None else f"{speed_up:.2f}",
            *(_local_cells(row) if local else []),
            "" if rate is None else f"{rate:.1%}",
            "" if accuracy is None else f"{accuracy:.1%} of {row['accuracy_images']}",
        )
    return table
