"""Try the product again: `python -m tests.adversary --help`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

# PyTorch reads this when it is imported. Models as small as these only lose by threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from .. import made
from ..kept import exported_once
from . import commands, damage, exports, fuzz, kills, many, outputs, paths, pipes
from .answers import Case, Skipped, reports_kept_in
from .place import Place

CATEGORIES: dict[str, Callable[[Place, bool], Iterator[Case]]] = {
    "bad command lines": commands.cases,
    "bad exports": exports.cases,
    "damaged bundle files": damage.cases,
    "paths in a manifest": paths.cases,
    "altered manifests": fuzz.cases,
    "outputs": outputs.cases,
    "closed pipes": pipes.cases,
    "kills": kills.cases,
    "many images": many.cases,
}


@dataclass
class Count:
    """What came of the cases of a category.

    Attributes:
        tried: cases, less those that were skipped.
        answered: as `answers.py` says.
        skipped: how many, by reason.
        seconds: processor seconds of this process and its children.
        faults: what was wrong, by case.
    """

    tried: int = 0
    answered: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    faults: dict[str, str] = field(default_factory=dict)


def try_category(
    name: str, place: Place, everything: bool, shown: Callable[[str], None] = lambda _: None
) -> Count:
    """Try all cases of a category."""
    count, reports = Count(), place.folder / "reports"
    began = _seconds()
    with reports_kept_in(reports):
        for case in CATEGORIES[name](place, everything):
            try:
                fault = case.fault()
            except Skipped as reason:
                count.skipped[str(reason)] = count.skipped.get(str(reason), 0) + 1
                continue
            except Exception as error:
                fault = f"the case itself failed: {error!r}"
            for report in reports.iterdir():
                fault = fault or f"a report: {report.read_text(encoding='utf-8')[-300:]!r}"
                report.unlink()
            count.tried += 1
            if fault is None:
                count.answered += 1
            else:
                count.faults[case.name] = fault
                shown(f"{name}: {case.name}: {fault}")
    count.seconds = round(_seconds() - began, 1)
    return count


def main(argv: Sequence[str] | None = None) -> int:
    """Try what was asked for; returns 1 where a case was not answered."""
    parser = argparse.ArgumentParser("python -m tests.adversary", description=__doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--quick", action="store_true", help="what continuous integration runs")
    which.add_argument("--all", action="store_true", help="every case")
    parser.add_argument("--only", choices=CATEGORIES, help="one category")
    parser.add_argument(
        "--bundle", type=Path, help="an exported bundle of the small models; made where left out"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="save counts and faults")
    args = parser.parse_args(argv)
    counts: dict[str, Count] = {}
    with tempfile.TemporaryDirectory(prefix="adversary-") as name:
        root = Path(name)
        (root / "exports").mkdir()
        folder = root / "place"
        folder.mkdir()
        os.chmod(root, 0o755)
        bundle = args.bundle
        if bundle is None:
            bundle = exported_once(_Temporary(root / "exports"), "tiny", made.tiny) / "bundle"
        place = Place.at(folder, bundle)
        for category in [args.only] if args.only else CATEGORIES:
            counts[category] = try_category(category, place, args.all, _print)
            _print(_row(category, counts[category]))
    print(f"\n{table(counts)}")
    if args.json is not None:
        values = {category: asdict(count) for category, count in counts.items()}
        args.json.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    return int(any(count.faults for count in counts.values()))


def table(counts: dict[str, Count]) -> str:
    """Return the counts as lines of text."""
    rows = [_row(name, count) for name, count in counts.items()]
    total = Count(
        sum(count.tried for count in counts.values()),
        sum(count.answered for count in counts.values()),
        seconds=sum(count.seconds for count in counts.values()),
    )
    return "\n".join([*rows, _row("all", total)])


def _row(name: str, count: Count) -> str:
    skipped = "".join(f"; {n} skipped: {reason}" for reason, n in count.skipped.items())
    return (
        f"{name:22} {count.answered:6} of {count.tried:6} answered, {count.seconds:6.1f} s{skipped}"
    )


class _Temporary:
    """What `kept.py` asks of pytest's factory of folders."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def getbasetemp(self) -> Path:
        return self._folder


def _print(text: str) -> None:
    print(text, flush=True)


def _seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


if __name__ == "__main__":
    sys.exit(main())
