"""The page: what can be chosen, two buttons, the stage, and its interface for programs."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from ...runtime.errors import CsdError
from ...runtime.session import Session
from ..png import data_uri, encode_png
from .controls import FULL, GUIDANCE, Controls, choose
from .figures import figures
from .stage import empty, stage
from .trial import Run, Shown, watch

TITLE = "csd: decoding, step by step"
# One run at a time, as a session has it: who waits does so in the queue, and holds no thread.
_ONE = {"concurrency_limit": 1, "concurrency_id": "decoding"}
_OURS = {"api_visibility": "private", "show_progress": "hidden"}


def build(gradio: Any, session: Session) -> Any:
    """Return the page of a session, a `gradio.Blocks`.

    Args:
        gradio: the library.
        session: what it decodes with.
    """
    manifest = session.bundle.manifest
    controls = Controls.of(manifest)
    with gradio.Blocks(title=TITLE, analytics_enabled=False) as page:
        gradio.Markdown(f"# {TITLE}\n{manifest.name}, on {session.backend.name}")
        run = gradio.State(None)
        with gradio.Row():
            with gradio.Column(scale=1, min_width=280):
                chosen = _inputs(gradio, controls)
                with gradio.Row():
                    go = gradio.Button("Generate", variant="primary", elem_id="csd-generate")
                    halt = gradio.Button("Stop", interactive=False, elem_id="csd-stop")
            with gradio.Column(scale=3, min_width=320):
                view = gradio.HTML(empty(), elem_id="csd-stage")

        def begin() -> tuple[Run, Any, Any, str]:
            buttons = gradio.Button(interactive=False), gradio.Button(interactive=True)
            return Run(), *buttons, stage(Shown("waiting"))

        def end() -> tuple[Any, Any]:
            return gradio.Button(interactive=True), gradio.Button(interactive=False)

        def decode(run: Run, *values: Any) -> Generator[str]:
            shown = Shown("")
            try:
                for shown in watch(session, choose(manifest, *values), run):
                    yield stage(shown)
            except CsdError as error:
                yield stage(shown, str(error))

        begun = go.click(begin, None, [run, go, halt, view], queue=False, **_OURS)
        decoded = begun.then(decode, [run, *chosen], view, **_ONE, **_OURS)
        decoded.then(end, None, [go, halt], queue=False, **_OURS)
        halt.click(Run.stop, run, None, queue=False, **_OURS)
        gradio.api(_interface(gradio, session), api_name="generate", **_ONE)
    return page


def _inputs(gradio: Any, controls: Controls) -> list[Any]:
    """The components of `choose`'s arguments, in their order; those without a choice are hidden."""
    label = gradio.Dropdown(
        list(controls.classes), value=controls.classes[0], label="class", elem_id="csd-class"
    )
    mode = gradio.Radio(list(controls.modes), value="target", label="mode", elem_id="csd-mode")
    with gradio.Row():
        seed = gradio.Number(0, label="seed", min_width=90, elem_id="csd-seed")
        guidance = gradio.Number(GUIDANCE, label="guidance", min_width=90, elem_id="csd-guidance")
    with gradio.Row():
        head = gradio.Dropdown(
            list(controls.heads),
            value=controls.head,
            label="head",
            min_width=90,
            elem_id="csd-head",
        )
        gamma = gradio.Number(
            controls.gamma,
            label="gamma of csd",
            visible=controls.max_gamma > 0,
            min_width=90,
            elem_id="csd-gamma",
        )
    refresh = gradio.Dropdown(
        list(controls.refreshes), value=FULL, label="refresh", allow_custom_value=True,
        visible=len(controls.refreshes) > 1, elem_id="csd-refresh",
    )  # fmt: skip
    return [label, seed, mode, head, gamma, refresh, guidance]


def _interface(gradio: Any, session: Session) -> Any:
    """What programs call: a generator that ends with the images and figures."""
    manifest = session.bundle.manifest
    gamma_default = Controls.of(manifest).gamma

    def generate(
        label: str,
        seed: int = 0,
        mode: str = "target",
        head: str = "auto",
        gamma: int = gamma_default,
        refresh: str = FULL,
        guidance: float = GUIDANCE,
    ) -> Generator[dict[str, Any]]:
        """Decode one image, and the target's with the same noise; see docs/demo.md."""
        try:
            choice = choose(manifest, label, seed, mode, head, gamma, refresh, guidance)
            for shown in watch(session, choice, Run()):
                yield _values(shown)
        except CsdError as error:
            raise gradio.Error(str(error), print_exception=False) from error

    return generate


def _values(shown: Shown) -> dict[str, Any]:
    """What there is to see, as JSON values."""
    pictures = {"image": shown.picture, "target": shown.beside, "verdicts": shown.verdicts}
    values: dict[str, Any] = {"doing": shown.doing} | {
        name: None if picture is None else data_uri(encode_png(picture))
        for name, picture in pictures.items()
    }
    if shown.made is not None and shown.target is not None:
        values["options"] = shown.made.options.to_dict()
        values["figures"] = figures(shown.made, shown.target)
    return values
