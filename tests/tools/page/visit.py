"""The page as its visitors have it: served by a process of its own, used through a browser."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Connections to elsewhere, and names that are looked up, are told on stderr.
SERVE = """
import sys
def tell(event, args):
    if event in ("socket.connect", "socket.getaddrinfo"):
        where = args[1] if event == "socket.connect" else args
        host = where[0] if isinstance(where, tuple) else None
        if host not in (None, "127.0.0.1"):
            print(event, where, file=sys.stderr)
sys.addaudithook(tell)
from csd.tools.page.entry import main
sys.exit(main())
"""


@dataclass
class Served:
    """A page that is served.

    Attributes:
        url: of it.
        process: that serves it.
        stderr: what that had to say, once it has ended.
    """

    url: str
    process: subprocess.Popen[str]
    stderr: str = ""


@contextmanager
def served(bundle: Path, folder: Path) -> Iterator[Served]:
    """Serve a bundle's page on a free port, with a home and temporary files in an empty folder.

    Ctrl-C ends it where the block ends.
    """
    environment = {
        "HOME": folder, "TMPDIR": folder, "OMP_NUM_THREADS": "1",
        # Gradio imports matplotlib, which keeps a list of fonts where that says.
        "MPLCONFIGDIR": folder.parent / "matplotlib",
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(bundle), "--port=0", "--threads=1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder,
        env={**os.environ, **{name: str(value) for name, value in environment.items()}},
    )  # fmt: skip
    assert process.stdout is not None
    page = Served(process.stdout.readline().split(" ")[0], process)
    try:
        yield page
    finally:
        process.send_signal(signal.SIGINT)
        page.stderr = process.communicate(timeout=60)[1]


class Visitor:
    """What a visitor does and sees.

    Args:
        driver: of the browser.
        url: of the page.
    """

    def __init__(self, driver: Any, url: str) -> None:
        self.driver = driver
        driver.get(url)
        self.until("return document.querySelector('#csd-stage #csd-status')")
        # Whatever the picture was, to look for tints afterwards.
        driver.execute_script(
            "window.seen = new Set(); new MutationObserver(() => {"
            " const image = document.querySelector('#csd-setting img');"
            " if (image) window.seen.add(image.src); })"
            ".observe(document.querySelector('#csd-stage'), {subtree: true, childList: true});"
        )

    def until(self, script: str, seconds: int = 60) -> Any:
        """Wait for a script to return something, and return that."""
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, seconds, 0.05).until(lambda d: d.execute_script(script))

    def _find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def fill(self, name: str, text: object) -> None:
        """Type into a field, in place of what is there; of a list the entry is taken."""
        from selenium.webdriver.common.keys import Keys

        field = self._find(f"#csd-{name} input")
        field.click()
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(str(text), Keys.ENTER)

    def pick_mode(self, mode: str) -> None:
        """Choose a mode."""
        self._find(f"#csd-mode input[value={mode}]").click()

    def generate(self) -> None:
        """Click Generate; returns when the run has begun."""
        self.until("return !document.querySelector('#csd-generate').disabled")
        self._find("#csd-generate").click()
        self.until("return !document.querySelector('#csd-stop').disabled")

    def stop(self) -> None:
        """Click Stop."""
        self._find("#csd-stop").click()

    def wait(self, status: str) -> str:
        """Wait until how far it is contains a text; returns all of it."""
        found = "(document.querySelector('#csd-status')?.textContent ?? '')"
        return self.until(f"const t = {found}; return t.includes({status!r}) ? t : null")

    def finish(self) -> None:
        """Wait until the run and its buttons are done."""
        self.until("return document.querySelector('#csd-stop').disabled")

    @property
    def figures(self) -> str:
        """The text of the table, empty where there is none."""
        find = "document.querySelector('#csd-stage table')?.innerText ?? ''"
        return self.driver.execute_script(f"return {find}")

    def picture(self, name: str = "setting") -> str:
        """The address of a picture."""
        return self._find(f"#csd-{name} img").get_attribute("src")

    def seen(self) -> list[str]:
        """Addresses of all pictures of the setting since the last call."""
        return self.driver.execute_script("const all = [...seen]; seen.clear(); return all")
