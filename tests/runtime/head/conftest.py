from __future__ import annotations

import pytest

from csd.plugins import host


@pytest.fixture(autouse=True, params=["compiled", "numpy"])
def host_code(request, monkeypatch):
    """Every test of the head samplers runs on both implementations of their host side."""
    if request.param == "numpy":
        monkeypatch.setenv(host.ENVIRONMENT, "off")
    else:
        monkeypatch.delenv(host.ENVIRONMENT, raising=False)
        if host.library() is None:
            pytest.skip("the host library is not built: no C++ compiler was found")
    return request.param
