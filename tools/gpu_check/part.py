"""What a part of the check comes to."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ...runtime.device import DeviceInfo, find_device
from ...runtime.errors import CsdError


class Skipped(Exception):  # noqa: N818 - not an error
    """A part cannot be done here; the message names what is missing and how to get it."""


@dataclass(frozen=True)
class Outcome:
    """Of a part: `passed`, `failed` or `skipped`, why, and its figures."""

    status: str
    reason: str = ""
    details: dict[str, Any] = field(default_factory=dict[str, Any])

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as JSON values."""
        return asdict(self)


def device_or_skip() -> DeviceInfo:
    """Return the first CUDA device.

    Raises:
        Skipped: there is none.
    """
    try:
        return find_device()
    except CsdError as error:
        raise Skipped(str(error)) from error
