"""Options that several commands of `csd-eval` share, and what they lead to."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from ...export.progress import Progress, shown_progress, silent
from ...models.zoo import ZOO, zoo_entry
from ...runtime.command.files import output_path
from ...runtime.command.line.effects import Effect, refuse_without_effect
from ...runtime.command.parser import Group, make_console
from ...runtime.command.text import shown
from ...runtime.errors import OptionError
from ..option_values import COUNT, THREADS, real_number_reader, whole_number_reader
from .images.generate import Features
from .images.real import NONE, REFERENCE
from .metrics.features import FeatureSpace
from .store.database import DEFAULT_DATABASE

_NAME = re.compile(r"[A-Za-z0-9][\w./+:@=-]{0,79}", re.ASCII)
_SHARE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(%?)")


def add_database_argument(group: Group) -> None:
    """Add the option that names the database."""
    group.add_argument(
        "--db",
        type=output_path,
        default=DEFAULT_DATABASE,
        metavar="FILE",
        help="database that runs are kept in",
    )


def add_features_argument(group: Group) -> None:
    """Add the option that names feature spaces beside the bundle's classifier."""
    group.add_argument(
        "--features",
        type=Path,
        action="append",
        default=[],
        metavar="FILE.onnx",
        help="graph whose features images are compared in, with its preprocessing in FILE.json; "
        "may be given several times, and stands beside the classifier of the bundle's zoo pair "
        "(default: that classifier alone)",
    )


def add_real_arguments(group: Group) -> None:
    """Add the options that say which real images generated ones are held against."""
    group.add_argument(
        "--real",
        metavar="PATH",
        help="real images: a folder of IDX files, a .npz with train_images, train_labels, "
        "test_images and test_labels, or none (default: the zoo pair's, else none)",
    )
    group.add_argument(
        "--real-images",
        type=whole_number_reader(2, 1_000_000),
        default=REFERENCE,
        metavar="N",
        help="real images of the training split that generated ones are held against",
    )


def add_compared_arguments(group: Group) -> None:
    """Add what the commands share that compare stored runs: images, features, and threads."""
    group.add_argument("--use", type=COUNT, metavar="N", help="images of each run (default: all)")
    add_features_argument(group)
    add_real_arguments(group)
    group.add_argument("--threads", type=THREADS, default=2, help="CPU threads")


def check_compared(args: argparse.Namespace) -> None:
    """Refuse options about real images where there are none.

    Raises:
        OptionError: see `refuse_without_effect`.
    """
    refuse_without_effect(args.given, _REAL, [args])


def add_json_argument(group: Group, what: str = "figures") -> None:
    """Add the option that saves what was found."""
    group.add_argument(
        "--json",
        type=output_path,
        metavar="FILE",
        help=f"also save the {what}, - for stdout (default: not saved)",
    )


def add_quiet_argument(group: Group) -> None:
    """Add the option that leaves progress out."""
    group.add_argument("--quiet", action="store_true", help="no progress (default: there is some)")


def run_name(text: str) -> str:
    """Read the name of a run.

    Raises:
        ArgumentTypeError: it is none.
    """
    if _NAME.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(
            f"{shown(text)} is no name: give letters, digits and . _ / + : @ = -, at most 80"
        )
    return text


def share(text: str) -> float:
    """Read a share above 0 and at most 1, as `2%` or `0.02`.

    Raises:
        ArgumentTypeError: it is none.
    """
    match = _SHARE.fullmatch(text.strip()) if text.isascii() and len(text) < 40 else None
    value = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{shown(text)} is no share: give one as 2% or 0.02")
    return value


_REAL: tuple[Effect[argparse.Namespace], ...] = (
    Effect(
        ("real_images",), lambda args: args.real != NONE,
        "there are no real images with --real none", "give --real PATH",
    ),
)  # fmt: skip
SIGNIFICANCE = real_number_reader(0, 0.5, above=True)


def progress_of(quiet: bool) -> Progress:
    """What shows progress, with the time left, on stderr."""
    return silent if quiet else shown_progress(make_console(sys.stderr))


def find_features(given: Sequence[Path], zoo: str | None, threads: int) -> list[Features]:
    """Load feature spaces: that of a zoo pair's classifier, which leads, and those asked for.

    Args:
        given: graphs.
        zoo: name of the pair, or None.
        threads: CPU threads.

    Raises:
        CsdError: a graph cannot be used, or two have one name.
    """
    spaces = [FeatureSpace.at(path) for path in given]
    if zoo in ZOO:
        spaces.insert(0, FeatureSpace.at(zoo_entry(zoo).classifier, f"{zoo} classifier"))
    titles = [space.title for space in spaces]
    if len(set(titles)) < len(titles):
        raise OptionError(f"--features has two graphs named {titles[-1]}: rename one")
    return [Features(space, space.loaded(threads)) for space in spaces]


def need_features(given: Sequence[Path], zoo: str | None, threads: int) -> list[Features]:
    """As `find_features`.

    Raises:
        OptionError: there are none.
    """
    features = find_features(given, zoo, threads)
    if not features:
        raise OptionError(
            "these images are of no zoo pair, so there is no classifier: give --features FILE.onnx"
        )
    return features
