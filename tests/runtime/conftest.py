from __future__ import annotations

import functools

import pytest

from ..vendor.machine import be_machine


@pytest.fixture
def machine(monkeypatch):
    """Make a machine with some of the vendor's packages."""
    return functools.partial(be_machine, monkeypatch)
