"""What is shown of a run, as HTML: pictures, a legend, figures, and what is going on."""

from __future__ import annotations

from html import escape
from typing import Any

from ..png import data_uri, encode_png
from .figures import difference, figures
from .overlay import ACCEPTED, RESAMPLED, Image, css_colour
from .trial import Shown

STYLE = """
.csd-pictures{display:flex;flex-wrap:wrap;gap:1rem}
.csd-pictures figure{flex:1 1 9rem;max-width:18rem;margin:0}
.csd-pictures img{width:100%;image-rendering:pixelated;display:block;background:#8882}
.csd-pictures .csd-blank{aspect-ratio:1;background:#8882}
.csd-legend i{display:inline-block;width:.9em;height:.9em;margin:0 .3em 0 1em}
.csd-figures{border-collapse:collapse;margin-top:1rem}
.csd-figures th,.csd-figures td{padding:.2rem .8rem;text-align:right;border-bottom:1px solid #8886}
.csd-figures th:first-child{text-align:left}
.csd-error{color:#dc2626;font-weight:600}
"""


def empty() -> str:
    """The stage before anything was asked for."""
    return stage(Shown("choose a class and generate"))


def stage(shown: Shown, error: str = "") -> str:
    """The HTML of what there is to see.

    Args:
        shown: it.
        error: one line, in place of how far it is.
    """
    apart, table = None, ""
    if shown.made is not None and shown.target is not None:
        apart = difference(shown.made.images[0], shown.target.images[0])
        table = _table(figures(shown.made, shown.target))
    verdicts = shown.verdicts
    pictures = "".join((
        _figure("csd-setting", "this setting", shown.picture),
        "" if verdicts is None else _figure("csd-verdicts", "its verdicts", verdicts),
        _figure("csd-target", "target, same seed", shown.beside),
        _figure("csd-difference", "difference", apart),
    ))  # fmt: skip
    kind, said = ("csd-error", error) if error else ("csd-doing", shown.doing)
    return (
        f'<p id="csd-status" role="status" class="{kind}">{escape(said)}</p>'
        f'<div class="csd-pictures">{pictures}</div>{_LEGEND}{table}'
    )


_LEGEND = (
    '<p class="csd-legend">drafted tokens:'
    f'<i style="background:{css_colour(ACCEPTED)}"></i>accepted by the target'
    f'<i style="background:{css_colour(RESAMPLED)}"></i>resampled</p>'
)


def _figure(name: str, caption: str, image: Image | None) -> str:
    if image is None:
        inner = '<div class="csd-blank"></div>'
    else:
        inner = f'<img alt="{caption}" src="{data_uri(encode_png(image))}">'
    return f'<figure id="{name}">{inner}<figcaption>{caption}</figcaption></figure>'


def _table(values: dict[str, Any]) -> str:
    own, target = values["setting"], values["target"]
    psnr = values["psnr"]
    apart = "the same image" if psnr is None else f"PSNR {psnr:.1f} dB"
    rows = (
        ("seconds", f"{own['seconds']:.3f}", f"{target['seconds']:.3f}",
         f"{values['times_as_fast']:.2f} times as fast"),
        ("AR steps", str(own["ar_steps"]), str(target["ar_steps"]), ""),
        ("acceptance", _share(own["acceptance"]), _share(target["acceptance"]), ""),
        ("mean difference of pixels", f"{values['mean_difference']:.1f} of 255", "", apart),
    )  # fmt: skip
    body = "".join(
        f"<tr><th>{name}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        for name, *cells in rows
    )
    head = "<tr><th></th><th>this setting</th><th>target</th><th></th></tr>"
    return f'<table class="csd-figures">{head}{body}</table>'


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"
