from __future__ import annotations

import pytest

from csd.tools.doctor import cli
from csd.tools.doctor.software.packages import PURPOSES, Package

# Trying them takes seconds, and test_packages.py does.
FOUND = {name: Package(name, True, "99.1") for name in PURPOSES}


@pytest.fixture
def known_packages(monkeypatch: pytest.MonkeyPatch) -> dict[str, Package]:
    """All packages work, without a look at them."""
    monkeypatch.setattr(cli, "find_packages", lambda: FOUND)
    return FOUND
