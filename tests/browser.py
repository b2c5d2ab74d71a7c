"""A browser without a window: the one place that starts Chromium, or says why a test skips."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

# It asks for nothing by itself.
ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
# What the browser loads of its own, and what a page holds itself.
INSIDE = ("chrome:", "chrome-untrusted:", "data:", "blob:", "about:")


@contextmanager
def opened(folder: Path, width: int = 1280, height: int = 900) -> Iterator[Any]:
    """Yield Chromium's WebDriver, with a profile in a folder that is empty; skips without it."""
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    absent = [name for name, path in programs.items() if path is None]
    if absent:
        pytest.skip(f"{' and '.join(absent)} not found: apt-get install chromium chromium-driver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = programs["chromium"] or ""
    for argument in (*ARGUMENTS, f"--user-data-dir={folder}", f"--window-size={width},{height}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(programs["chromedriver"]))
    try:
        resize(driver, width, height)
        yield driver
    finally:
        driver.quit()


def resize(driver: Any, width: int, height: int = 900) -> None:
    """Give the page so many pixels, also fewer than a window may have."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def asked_for(driver: Any) -> list[str]:
    """Addresses that the page asked for since the last call, without what it holds itself."""
    messages = (json.loads(entry["message"])["message"] for entry in driver.get_log("performance"))
    found = (m["params"] for m in messages if m["method"] == "Network.requestWillBeSent")
    return [p["request"]["url"] for p in found if not p["request"]["url"].startswith(INSIDE)]


def complaints(driver: Any) -> list[str]:
    """What the console says since the last call."""
    return [f"{entry['level']}: {entry['message']}" for entry in driver.get_log("browser")]


def overflow(driver: Any) -> int:
    """Pixels by which the page is wider than what shows it."""
    root = "document.documentElement"
    return driver.execute_script(f"return {root}.scrollWidth - {root}.clientWidth")
