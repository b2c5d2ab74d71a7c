"""Take the picture of the page that README.md shows.

csd-export --zoo fashion-mnist --out bundle
python -m tests.tools.page.screenshot bundle docs/images/demo-page.png
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from csd.runtime.command.files import write_atomically

from ...browser import opened, resize
from .visit import Visitor, served


def main(bundle: str, out: str) -> None:
    """Generate an image with csd, and take the page as it is then."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "home").mkdir()
        with (
            opened(folder / "profile") as driver,
            served(Path(bundle).resolve(), folder / "home") as page,
        ):
            resize(driver, 1040, 760)
            visitor = Visitor(driver, page.url)
            visitor.fill("class", "ankle-boot")
            visitor.pick_mode("csd")
            visitor.fill("gamma", 16)
            visitor.generate()
            visitor.wait("done")
            visitor.finish()
            driver.execute_script("document.activeElement.blur(); scrollTo(0, 0)")
            with write_atomically(Path(out)) as stream:
                stream.write(driver.get_screenshot_as_png())


if __name__ == "__main__":
    main(*sys.argv[1:])
