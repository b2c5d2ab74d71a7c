"""`csd-demo` where it cannot serve, and its interface for programs."""

from __future__ import annotations

import socket
import sys

import pytest

from csd.tools.page.cli import build_parser, main

from ...helpers import failure
from ...test_docs import python_blocks
from .visit import served


def latents_only(values):
    del values["graphs"]["decoder"]


def test_it_listens_on_this_machine_alone_unless_told_otherwise():
    assert build_parser().parse_args(["bundle"]).host == "127.0.0.1"


def test_what_cannot_be_served_is_one_line(tiny_bundle, make_bundle, tmp_path, capsys):
    gone = tmp_path / "gone"
    assert str(gone) in failure(main, [gone, "--port", 0], capsys)
    message = failure(main, [make_bundle(latents_only), "--port", 0], capsys)
    assert "has no decoder and makes latents only: export it with --decoder" in message
    message = failure(main, [tiny_bundle, "--host", "no.such.host.invalid"], capsys)
    assert message.endswith("is not known here: give --host 127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = failure(main, [tiny_bundle, "--port", port], capsys)
    assert message.startswith(f"port {port} of 127.0.0.1 is in use: give another one with --port")


def test_it_cannot_be_shared(tiny_bundle, capsys):
    message = failure(main, [tiny_bundle, "--share"], capsys)
    assert message.startswith("unrecognized arguments: --share")


def test_without_gradio_its_package_is_named(tiny_bundle, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    message = failure(main, [tiny_bundle, "--port", 0], capsys)
    assert message.startswith("csd-demo needs gradio: gradio is not installed (")
    assert message.endswith("): pip install gradio")


def test_a_program_gets_images_figures_and_errors(tiny_bundle, tmp_path):
    client = pytest.importorskip("gradio_client")
    with served(tiny_bundle, tmp_path) as page:
        caller = client.Client(page.url, verbose=False, download_files=False)
        steps = [*caller.submit("3", mode="csd", gamma=4, api_name="/generate")]
        assert steps[0]["doing"].startswith("csd: AR step ")
        last = steps[-1]
        assert last["doing"] == "done"
        for name in ("image", "target", "verdicts"):
            assert last[name].startswith("data:image/png;base64,")
        assert (last["options"]["mode"], last["options"]["gamma"]) == ("csd", 4)
        assert 0 <= last["figures"]["setting"]["acceptance"] <= 1
        assert last["figures"]["target"]["acceptance"] is None
        again = caller.predict("3", api_name="/generate")
        assert again["image"] == again["target"] == last["target"]
        assert again["figures"]["psnr"] is None
        with pytest.raises(Exception, match="label 'x' is not known: give 0 to 9"):
            caller.predict("x", api_name="/generate")
        (example,) = python_blocks("docs/demo.md")
        for written, here in (("http://127.0.0.1:7860/", page.url), ('"bag"', '"3"')):
            assert written in example
            example = example.replace(written, here)
        exec(compile(example, "docs/demo.md", "exec"), {})
    assert page.process.returncode == 130
