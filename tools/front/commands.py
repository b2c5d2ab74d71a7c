"""The subcommands of `csd`: the one table of them."""

from __future__ import annotations

from typing import NamedTuple

BUNDLE, IMAGES, MEASURE, MEND = "make a bundle", "make images", "measure", "look and mend"
# In the order in which the manual has them.
GROUPS = (BUNDLE, IMAGES, MEASURE, MEND)


class Subcommand(NamedTuple):
    """A subcommand, which is also there as `csd-NAME`.

    Attributes:
        name: of it.
        module: that has its `main` and `build_parser`; imported when it is asked for.
        about: what it is for, in a line.
        group: what one wants, of `GROUPS`.
    """

    name: str
    module: str
    about: str
    group: str


SUBCOMMANDS = (
    Subcommand("export", "csd.export.cli", "weights to a bundle; engines for a bundle", BUNDLE),
    Subcommand("generate", "csd.runtime.cli", "labels to images, without PyTorch", IMAGES),
    Subcommand("demo", "csd.tools.page.cli", "a page that shows the decoding", IMAGES),
    Subcommand("bench", "csd.tools.bench.cli", "how fast is each mode, beside PyTorch", MEASURE),
    Subcommand("eval", "csd.tools.eval.cli", "is a faster setting still as good", MEASURE),
    Subcommand("inspect", "csd.tools.inspect.cli", "what is in a bundle, what differs", MEND),
    Subcommand("doctor", "csd.tools.doctor.cli", "will it run here, and what mends it", MEND),
)
