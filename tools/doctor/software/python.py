"""Python and csd itself: versions, what hides what is installed, the host library, telemetry."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any, cast

from ....runtime.command.text import first_line
from ....runtime.libraries.packages import DISTRIBUTION, installed_version
from ....runtime.libraries.telemetry import TELEMETRY, is_off
from ....runtime.version import VERSION
from ..check import NOTE, OK, PROBLEM, Check, split_message

AREA = "Python and csd"
FIRST_PYTHON = (3, 10)
_BUILD = "python -m csd.plugins.build --host-only"
# Another project on the public index has the name that Python imports ours by.
_STRANGER = "csd"


def python_checks(*, numpy: bool) -> list[Check]:
    """Look at Python and csd.

    Args:
        numpy: whether NumPy works, without which the host library is of no use.
    """
    return [_python(), _csd(), *_stranger(), _host_library(numpy), _telemetry()]


def _python() -> Check:
    finding = f"{platform.python_version()}, {sys.executable}"
    if sys.version_info[:2] < FIRST_PYTHON:
        first = ".".join(map(str, FIRST_PYTHON))
        return Check(
            AREA, "Python", PROBLEM, finding, f"csd needs Python {first}",
            f"python{first} -m venv .venv, and install csd there",
        )  # fmt: skip
    return Check(AREA, "Python", OK, finding)


def _csd() -> Check:
    """Where csd is imported from, and whether that is what pip installed."""
    place = Path(__file__).resolve().parents[3]
    finding = f"{VERSION}, {place}"
    installed = installed_version(DISTRIBUTION)
    if not installed:
        return Check(
            AREA, "csd", NOTE, finding, f"{DISTRIBUTION} is not installed: csd runs from a folder",
            f"pip install {place}" if (place / "pyproject.toml").is_file() else "",
        )  # fmt: skip
    expected = _installed_places()
    if expected and not any(root in (place, *place.parents) for root in expected):
        return Check(
            AREA, "csd", NOTE, finding,
            f"it hides what is installed in {expected[0]}: PYTHONPATH, or the folder where Python "
            "starts, comes first",
            "unset PYTHONPATH, or start from another folder",
        )  # fmt: skip
    if installed != VERSION:
        return Check(
            AREA, "csd", NOTE, finding, f"pip knows it as {installed}: its code changed since",
            f"pip install {place}" if (place / "pyproject.toml").is_file() else "",
        )  # fmt: skip
    return Check(AREA, "csd", OK, finding)


def _installed_places() -> list[Path]:
    """Folders in which pip installed csd; of an editable one, the checkout."""
    try:
        found = importlib.metadata.distribution(DISTRIBUTION)
        about: Any = json.loads(found.read_text("direct_url.json") or "{}")
    except (importlib.metadata.PackageNotFoundError, OSError, ValueError):
        return []
    places = [Path(str(found.locate_file(""))).resolve()]
    about = cast("dict[str, Any]", about) if isinstance(about, dict) else {}
    url = str(about.get("url", ""))
    if url.startswith("file://") and about.get("dir_info", {}).get("editable"):
        places.insert(0, Path(url.removeprefix("file://")).resolve())
    return places


def _stranger() -> list[Check]:
    version = installed_version(_STRANGER)
    if not version:
        return []
    return [Check(
        AREA, f"distribution {_STRANGER}", NOTE, f"{version} is installed too",
        f"it is another project that writes to the same folder as {DISTRIBUTION}",
        f"pip uninstall -y {_STRANGER} {DISTRIBUTION}, then install csd again",
    )]  # fmt: skip


def _host_library(numpy: bool) -> Check:
    name = "host library"
    if not numpy:
        return Check(AREA, name, NOTE, "not looked at: it needs NumPy")
    from ....plugins.host import ENVIRONMENT, HostLibraryError, find_library, library

    asked = os.environ.get(ENVIRONMENT, "")
    try:
        loaded, path = library(), find_library()
    except HostLibraryError as error:
        reason, remedy = split_message(first_line(error, 600))
        return Check(AREA, name, PROBLEM, "asked for, and not usable", reason, remedy)
    if loaded is not None:
        return Check(AREA, name, OK, f"on: {path}")
    slower = "the time between two network calls is several times longer in NumPy"
    if asked:
        return Check(AREA, name, NOTE, f"off: {ENVIRONMENT} is {asked}", slower,
                     f"unset {ENVIRONMENT}")  # fmt: skip
    return Check(AREA, name, NOTE, "off: it was not built", slower, f"{_BUILD} (needs g++)")


def _telemetry() -> Check:
    name, value = "telemetry", os.environ.get(TELEMETRY, "")
    if value and not is_off(value):
        return Check(
            AREA, name, NOTE, f"ONNX Runtime may send events: {TELEMETRY} is {value}",
            "csd switches that off where nobody says otherwise", f"unset {TELEMETRY}",
        )  # fmt: skip
    return Check(AREA, name, OK, "off")
