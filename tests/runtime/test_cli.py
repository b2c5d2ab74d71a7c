from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from csd.plugins import host
from csd.runtime import Bundle, GenerateOptions
from csd.runtime.bundle.manifest import file_sha256
from csd.runtime.cli import build_parser, main
from csd.runtime.result import GenerateResult
from csd.runtime.stats import PARTS, Stats

from .. import nasty
from ..helpers import failure, leftovers, no_draft, run_python

FAST = ("--num-iter", 4, "--head-steps", 3, "--quiet")
CSD = ("--mode", "csd", "--head", "sequential", "--gamma", 2)
COMMAND = "from csd.runtime.cli import main; raise SystemExit(main())"
ENTRY = COMMAND.replace("cli", "entry")


def _run(*argv) -> int:
    return main([str(part) for part in argv])


@pytest.fixture
def out(tmp_path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def test_a_run_writes_a_grid_latents_and_statistics(tiny_bundle, out, capsys):
    argv = [tiny_bundle, "--labels", "3,7,9", "--seed", 4, *CSD, *FAST]
    files = ["--out", out / "x.png", "--save-latents", out / "x.npy", "--stats", out / "x.json"]
    assert _run(*argv, *files) == 0
    assert leftovers(out) == ["x.json", "x.npy", "x.png"]
    assert "3 images in" in capsys.readouterr().out
    latents = np.load(out / "x.npy")
    assert (latents.shape, latents.dtype) == ((3, 16, 4, 4), np.float32)
    with Bundle.open(tiny_bundle).session() as session:
        options = GenerateOptions(mode="csd", num_iter=4, head_steps=3, gamma=2, head="sequential")
        expected = session.generate([3, 7, 9], options, seed=4)
    np.testing.assert_array_equal(latents, expected.latents)
    # Two by two images of 8 pixels, enlarged 14 times, with a gap of two pixels between them.
    assert Image.open(out / "x.png").size == (22 * 14, 22 * 14)


def test_the_statistics_hold_everything_that_a_report_needs(tiny_bundle, out):
    argv = [tiny_bundle, "--labels", "3", "--seed", 4, *CSD, *FAST, "--out", out / "x.png"]
    assert _run(*argv, "--cfg", 2, "--stats", out / "x.json") == 0
    report = json.loads((out / "x.json").read_text(encoding="utf-8"))
    assert (report["mode"], report["seed"], report["labels"]) == ("csd", 4, [3])
    assert report["options"]["gamma"] == 2
    assert (report["options"]["num_iter"], report["options"]["head_steps"]) == (4, 3)
    assert set(report["seconds_by_part"]) == set(PARTS)
    assert 0 < sum(report["seconds_by_part"].values()) <= report["seconds"]
    assert report["ar_steps"] == 4
    assert report["drafted"] == report["accepted"] + report["resampled"] + report["dropped"] > 0
    assert report["verifications"] == 2
    assert len(report["acceptance_rate_by_ar_step"]) == 4
    assert 0 <= report["acceptance_rate"] <= 1
    assert set(report["head_evaluations"]) == {"target", "draft"}
    assert set(report["versions"]) == {"csd", "python", "numpy", "onnxruntime", "precision"}


def test_classes_are_taken_by_name_where_the_bundle_names_them(make_bundle, out):
    names = [f"class {k}" for k in range(10)]
    bundle = make_bundle(lambda values: values.update(class_names=names))
    argv = ["--labels", "class 7, 2,10", *FAST, "--mode", "target", "--out", out / "x.png"]
    assert _run(bundle, *argv, "--stats", out / "x.json") == 0
    assert json.loads((out / "x.json").read_text(encoding="utf-8"))["labels"] == [7, 2, 10]


@pytest.mark.parametrize("labels", ["", ",", "1,,2", "11", "99", "-1", "shirt", "1.5", "²", "0x1"])
def test_labels_out_of_range_and_unknown_names_are_one_line(tiny_bundle, labels, out, capsys):
    argv = [tiny_bundle, f"--labels={labels}", *FAST, "--out", out / "x.png"]
    message = failure(main, argv, capsys)
    assert message.startswith("label ")
    assert "give 0 to 9 (10 for an unconditional image)" in message
    assert leftovers(out) == []


def test_an_unknown_name_is_answered_with_the_names_of_the_bundle(make_bundle, out, capsys):
    names = [f"c{k}" for k in range(10)]
    bundle = make_bundle(lambda values: values.update(class_names=names))
    message = failure(main, [bundle, "--labels", "c10", "--out", out / "x.png"], capsys)
    assert "one of c0, c1," in message


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--gamma", "0"], "gamma is 0: give at least 1"),
        (["--gamma", "-3"], "gamma is -3"),
        (["--mode", "csd", "--gamma", "33"], "gamma is 33: this bundle takes 1 to 32"),
        (["--num-iter", "0"], "num-iter is 0"),
        (["--num-iter", "17"], "num-iter is 17: give 1 to 16"),
        (["--head-steps", "0"], "head-steps is 0: give 1 to 1000"),
        (["--head-steps", "1001"], "head-steps is 1001"),
        (["--head-steps", "20:0"], "head-steps is 0"),
        (["--head-steps", "ten"], "head-steps is 'ten': give N, or N:M"),
        (["--head-steps", "²"], "head-steps is '²'"),
        (["--temperature", "0"], "temperature is 0.0: give a number above 0"),
        (["--temperature", "nan"], "temperature is nan"),
        (["--inner-temperature", "-1"], "inner-temperature is -1.0"),
        (["--cfg", "inf"], "cfg is inf"),
        (["--prefill", "2"], "prefill is 2.0: give a share from 0 to 1"),
        (["--threads", "0"], "threads is 0: give"),
        (["--threads", "99999999999"], "threads is 99999999999: give"),
        (["--seed", "-1"], "seed is -1: give a whole number from 0"),
        (["--seed", str(2**64)], "seed is 18446744073709551616"),
        (["--columns", "0"], "columns is 0: give at least 1"),
        (["--backend", "abacus"], "backend is 'abacus': give auto or one of"),
        (["--backend", "tensorrt"], "tensorrt"),
    ],
)  # fmt: skip
def test_options_out_of_range_are_one_line(tiny_bundle, argv, message, out, capsys):
    # Without --quiet: a progress bar must not stand beside the message.
    argv = [tiny_bundle, "--labels", "1", "--out", out / "x.png", *argv]
    assert message in failure(main, argv, capsys)
    assert leftovers(out) == []


@pytest.mark.parametrize(
    "argv", [[], ["bundle"], ["bundle", "--labels", "1", "--mode", "fast"],
             ["bundle", "--labels", "1", "--gamma", "many"], ["bundle", "--labels", "1", "--wat"]]
)  # fmt: skip
def test_arguments_that_cannot_be_parsed_are_one_line(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("csd-generate: error: ")


def test_csd_without_a_draft_names_the_mode_that_works(make_bundle, out, capsys):
    bundle = make_bundle(no_draft)
    argv = [bundle, "--labels", "1", "--out", out / "x.png"]
    for mode in ("csd", "draft"):
        message = failure(main, [*argv, "--mode", mode], capsys)
        assert "use --mode target, or export with --draft" in message
    assert _run(*argv, *FAST) == 0


def test_a_bundle_without_a_decoder_asks_for_latents(make_bundle, out, capsys):
    bundle = make_bundle(lambda values: values["graphs"].pop("decoder"))
    argv = [bundle, "--labels", "1", "--mode", "target", *FAST, "--out", out / "x.png"]
    assert "give --save-latents FILE" in failure(main, argv, capsys)
    argv = argv[:-2]
    assert _run(*argv, "--save-latents", out / "x.npy") == 0
    assert leftovers(out) == ["x.npy"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda b: (b / "manifest.json").unlink(), "no bundle at"),
        (lambda b: (b / "manifest.json").write_text("{"), "is not a manifest: export the bundle"),
        (lambda b: (b / "manifest.json").write_text('{"schema_version": 99}'), "upgrade csd"),
        (lambda b: (b / "decoder.onnx").unlink(), "lacks decoder.onnx: export it again"),
        (lambda b: (b / "decoder.onnx").write_bytes(b"?"), "decoder.onnx was altered"),
        (lambda b: (b / "calibration.npz").write_bytes(b"?"), "calibration.npz was altered"),
    ],
    ids=["missing", "damaged", "future", "incomplete", "altered", "altered calibration"],
)
def test_a_bundle_that_cannot_be_used_is_one_line(make_bundle, spoil, message, out, capsys):
    bundle = make_bundle()
    spoil(bundle)
    argv = [bundle, "--labels", "1", "--out", out / "x.png"]
    assert message in failure(main, argv, capsys)
    assert leftovers(out) == []


def test_a_missing_onnxruntime_is_one_line_with_the_extra(tiny_bundle, out, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    message = failure(main, [tiny_bundle, "--labels", "1", "--out", out / "x.png"], capsys)
    assert "pip install onnxruntime" in message


@pytest.mark.parametrize("option", ["--out", "--save-latents", "--stats"])
@pytest.mark.parametrize("place", ["gone/x", "file/x", "/proc/x", "."])
def test_a_place_that_cannot_be_written_is_one_line_before_any_work(
    option, place, out, capsys, monkeypatch
):
    monkeypatch.chdir(out)
    Path("file").touch()
    # The bundle is not there: the place is looked at first.
    argv = ["nowhere", "--labels", "1", "--out", "x.png", option, place]
    message = failure(main, argv, capsys)
    assert "nowhere" not in message
    assert ": " in message
    assert leftovers(out) == ["file"]


def test_numbers_that_are_not_finite_are_one_line(tiny_bundle, out, capsys, monkeypatch):
    from csd.runtime import NumericsError
    from csd.runtime.session import Session

    def fail(*args, **kwargs):
        raise NumericsError("target.head_step returned\nvalues: check the weights")

    monkeypatch.setattr(Session, "generate", fail)
    argv = [tiny_bundle, "--labels", "1", "--out", out / "x.png", "--quiet"]
    message = failure(main, argv, capsys)
    assert message == "target.head_step returned values: check the weights"
    assert leftovers(out) == []


@pytest.mark.parametrize("writer", ["PIL.Image.Image.save", "numpy.save"])
def test_a_full_disk_is_one_line_and_leaves_nothing(writer, tiny_bundle, out, capsys, monkeypatch):
    def full(*args, **kwargs):
        next(arg for arg in args if hasattr(arg, "write")).write(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writer, full)
    images, latents = (out / "x", out / ".." / "y")[:: 1 if "PIL" in writer else -1]
    argv = [tiny_bundle, "--labels", "1", *FAST, "--out", images, "--save-latents", latents]
    message = failure(main, argv, capsys)
    assert message.startswith("No space left on device")
    assert "free some space" in message
    assert leftovers(out) == []


def test_a_really_full_disk_is_one_line_and_leaves_nothing(tiny_bundle, small_disk, capsys):
    argv = [tiny_bundle, "--labels", "1,2,3,4", "--mode", "target", *FAST]
    (small_disk / "ballast").write_bytes(b"x" * (64 << 10))
    message = failure(main, [*argv, "--out", small_disk / "x.png"], capsys)
    assert "No space left on device" in message
    assert "free some space" in message
    assert leftovers(small_disk) == ["ballast"]


def test_ctrl_c_is_one_line_with_130_and_leaves_nothing(tiny_bundle, out):
    labels = ",".join("1" * 200)
    argv = [tiny_bundle, "--labels", labels, "--mode", "target", "--head-steps", "1000"]
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *map(str, argv), "--quiet", "--out", str(out / "x.png"),
         "--threads", "1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    # Past the imports: ONNX Runtime's library is mapped once a graph is about to be loaded.
    maps = Path(f"/proc/{process.pid}/maps")
    while process.poll() is None and "onnxruntime_pybind11" not in maps.read_text():
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines() == ["csd-generate: error: interrupted; nothing was left half-written"]
    assert leftovers(out) == []


def test_the_progress_bar_shows_ar_steps_and_the_acceptance_rate(tiny_bundle, out):
    argv = [tiny_bundle, "--labels", 1, "--num-iter", 4, "--head-steps", 2, *CSD]
    done = run_python(COMMAND, *argv, "--out", out / "x.png")
    assert done.returncode == 0
    assert "AR step 4/4" in done.stderr
    assert "acceptance" in done.stderr


def test_quiet_shows_no_bar(tiny_bundle, out, capsys):
    assert _run(tiny_bundle, "--labels", 1, *FAST, "--out", out / "x.png") == 0
    assert capsys.readouterr().err == ""


def test_the_help_shows_defaults_and_an_example(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "example: csd-generate bundle --labels 3,7,9" in text
    assert "(default: grid.png, or none with --out-dir)" in text
    for default in ("target", "auto", "8", "block", "paper", "42.0", "0.05", "1.0", "2"):
        assert f"(default: {default})" in text
    for option in ("--labels", "--seed", "--mode", "--gamma", "--verify", "--acceptance",
                   "--inner-temperature", "--prefill", "--num-iter", "--head-steps", "--cfg",
                   "--cfg-schedule", "--cfg-interval", "--mask-schedule", "--temperature",
                   "--threads", "--out", "--save-latents", "--stats"):  # fmt: skip
        assert option in text


def test_settings_of_engines_reach_the_session(tiny_bundle, out, monkeypatch, capsys):
    from csd.runtime.backends import BackendOptions, OnnxLoader, OnnxRuntimeBackend

    given = []
    monkeypatch.setattr(
        "csd.runtime.session.create_backend",
        lambda folder, manifest, options, _: (
            given.append(options) or OnnxRuntimeBackend(folder, manifest, OnnxLoader(1))
        ),
    )
    argv = [tiny_bundle, "--labels", "3", *FAST, "--mode", "target", "--out", out / "x.png"]
    assert _run(*argv) == 0
    flags = ["--backend", "tensorrt", "--precision", "bf16", "--memory-limit", 900]
    assert _run(*argv, *flags, "--no-cuda-graph", "--threads", 1) == 0
    assert given == [BackendOptions(), BackendOptions("tensorrt", 1, "bf16", 900, False)]
    capsys.readouterr()
    monkeypatch.undo()
    said = failure(main, [*argv, "--memory-limit", 900], capsys)
    assert said == (
        "onnxruntime has no --memory-limit: leave it out, or use engines (--backend tensorrt or "
        "tensorrt_rtx)"
    )
    assert "memory-limit is 0: give MB" in failure(main, [*argv, "--memory-limit", 0], capsys)


def test_a_png_holds_what_makes_it_again(tiny_bundle, out):
    argv = [tiny_bundle, "--labels", "3,7", "--seed", 4, *FAST]
    files = ["--out", out / "x.png", "--out-dir", out / "each", "--stats", out / "x.json"]
    assert _run(*argv, *files) == 0
    assert leftovers(out / "each") == ["000-3.png", "001-7.png"]
    stats = json.loads((out / "x.json").read_text(encoding="utf-8"))
    with Image.open(out / "x.png") as image:
        whole = json.loads(image.text["csd"])
    assert (whole["labels"], whole["seed"], whole["first_image"]) == ([3, 7], 4, 0)
    assert whole["bundle"] == stats["bundle"]
    assert stats["bundle"]["manifest_sha256"] == file_sha256(tiny_bundle / "manifest.json")
    assert str(tiny_bundle.parent) not in json.dumps(whole)
    with Image.open(out / "each" / "001-7.png") as image:
        assert image.size == (8, 8)
        pixels, alone = np.asarray(image), json.loads(image.text["csd"])
    options = alone["options"]
    if isinstance(options["head_steps"], list):
        options["head_steps"] = tuple(options["head_steps"])
    with Bundle.open(tiny_bundle).session() as session:
        again = session.generate(
            alone["labels"], GenerateOptions(**options), seed=alone["seed"],
            first_image=alone["first_image"],
        )  # fmt: skip
    assert np.abs(again.images[0].astype(int) - pixels).max() <= 1


def test_the_statistics_say_what_ran(tiny_bundle, out, monkeypatch):
    argv = [tiny_bundle, "--labels", 1, *FAST, "--threads", 1, "--out", out / "x.png"]
    assert _run(*argv, "--stats", out / "x.json") == 0
    report = json.loads((out / "x.json").read_text(encoding="utf-8"))
    found = host.find_library()
    assert report["host_library"] == (None if found is None else str(found))
    assert (report["backend"], report["threads"]) == ("onnxruntime", 1)
    monkeypatch.setenv("CSD_HOST_LIBRARY", "off")
    assert _run(*argv, "--stats", out / "x.json") == 0
    report = json.loads((out / "x.json").read_text(encoding="utf-8"))
    assert report["host_library"] is None


def test_all_labels_with_captions_one_file_an_image(make_bundle, out):
    names = ["T-shirt/top", "a b", "..", "ü", "x" * 200, "5", "six", "7", "8", "9"]
    bundle = make_bundle(lambda values: values.update(class_names=names))
    (out / "each").mkdir()
    (out / "each" / "001-a-b.png").write_bytes(b"old")
    argv = [bundle, "--labels", "all", *FAST, "--out-dir", out / "each", "--captions"]
    assert _run(*argv) == 0
    assert leftovers(out) == ["each"]  # no grid unless it is asked for
    files = leftovers(out / "each")
    assert len(files) == 10
    assert files[:4] == ["000-T-shirt-top.png", "001-a-b.png", "002-class.png", "003-ü.png"]
    assert files[4] == f"004-{'x' * 60}.png"
    with Image.open(out / "each" / "001-a-b.png") as image:
        assert image.size[1] == 8 + 14


def test_a_folder_that_cannot_be_written_is_one_line_before_any_work(out, capsys):
    (out / "file").touch()
    for place in ("file", "gone/each", "/proc/each"):
        argv = ["nowhere", "--labels", "1", "--out-dir", out / place]
        message = failure(main, argv, capsys)
        assert "nowhere" not in message
        assert leftovers(out) == ["file"]


def test_a_folder_of_images_is_none_of_the_bundle(make_bundle, out, capsys):
    bundle = make_bundle()
    before = leftovers(bundle)
    (out / "link").symlink_to(bundle)
    for place in (bundle, bundle / "each", out / "link" / "each", bundle / ".." / bundle.name):
        message = failure(main, [bundle, "--labels", "1", "--out-dir", place], capsys)
        assert message == f"--out-dir {place} belongs to the bundle {bundle}: give another folder"
    assert leftovers(bundle) == before


def test_an_output_is_no_image_of_the_folder(make_bundle, out, capsys):
    bundle = make_bundle(lambda values: values.update(class_names=list("abcdefghij")))
    folder = out / "each"
    folder.mkdir()
    for option in ("--out", "--stats", "--save-latents"):
        argv = [bundle, "--labels", "4,1", "--out-dir", folder, option, folder / "001-b.png"]
        message = failure(main, argv, capsys)
        assert message == (
            f"{option} {folder}/001-b.png is 001-b.png of --out-dir {folder}: give another path"
        )
        assert leftovers(folder) == []


def test_a_pillow_that_cannot_be_loaded_is_one_line_before_any_work(
    tiny_bundle, out, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "PIL", None)
    message = failure(main, [tiny_bundle, "--labels", "1", "--out", out / "x.png"], capsys)
    assert message.startswith("Pillow is not installed")
    assert message.endswith(": pip install pillow")


def test_columns_beyond_the_images_are_no_more_than_the_images(tiny_bundle, out):
    argv = [tiny_bundle, "--labels", "1,2", *FAST, "--out", out / "x.png"]
    assert _run(*argv, "--columns", 2**31 - 1) == 0
    with Image.open(out / "x.png") as image:
        assert image.size == (22 * 14, 12 * 14)


@nasty.every(build_parser())
def test_no_value_of_an_option_is_a_traceback(option, tiny_bundle, out, capsys, monkeypatch):
    monkeypatch.chdir(out)
    made = []

    def generate(session, labels, options, *_):
        made.append(len(labels))
        side = 8
        images = np.zeros((len(labels), side, side, 3), np.uint8)
        latents = np.zeros((len(labels), 16, 4, 4), np.float32)
        return GenerateResult(
            images, latents, latents, Stats(4), options, tuple(labels), 0, 0, session.origin
        )

    monkeypatch.setattr("csd.runtime.cli._generate_with_bar", generate)
    if option not in ("--backend", "--threads", "--precision", "--memory-limit"):
        session = Bundle.open(tiny_bundle).session()
        monkeypatch.setattr("csd.runtime.cli.open_session", lambda *_: nullcontext(session))
    for value in nasty.VALUES:
        if value == "-" and option in ("--out", "--save-latents", "--stats"):
            continue  # results on stdout, below
        argv = [tiny_bundle, "--labels=1", "--quiet", f"{option}={value}"]
        code = nasty.check(main, argv, capsys)
        assert (code == 0) == bool(made), value
        made.clear()


@pytest.mark.parametrize(
    "options", [["--temperature=1e-320"], ["--temperature=1e308"], ["--inner-temperature=1e-320"],
                ["--inner-temperature=1e308"], ["--cfg=1e-320"], ["--cfg=1e308"],
                ["--head-tolerance=1e308", "--head=parallel"], ["--prefill=1e-320"],
                [f"--seed={2**64 - 1}"], ["--columns=2147483647"], [f"--columns={10**400}"]],
    ids=" ".join,
)  # fmt: skip
def test_the_ends_of_ranges_generate_or_are_one_line(options, tiny_bundle, out, capsys):
    argv = [tiny_bundle, "--labels=1,2", "--out", out / "x.png", *FAST, *options]
    code = nasty.check(main, argv, capsys)
    assert leftovers(out) == ([] if code else ["x.png"])


def test_no_name_of_a_bundle_is_a_traceback(out, capsys, monkeypatch):
    monkeypatch.chdir(out)
    for bundle in nasty.VALUES:
        if "\0" not in bundle and not bundle.startswith("-"):
            assert nasty.check(main, [bundle, "--labels=1"], capsys) == 2
    assert leftovers(out) == []


def test_enormous_lists_of_labels_are_refused_before_work(tiny_bundle, out, capsys):
    argv = [tiny_bundle, "--labels", ",".join(["1"] * 100_000), "--out", out / "x.png"]
    assert "give fewer --labels at a time" in failure(main, argv, capsys)
    argv[2] = ",".join(["shirt"] * 100_000)
    assert "label 'shirt' is not known" in failure(main, argv, capsys)
    assert leftovers(out) == []


@pytest.mark.parametrize("option", ["--out", "--save-latents", "--stats"])
def test_results_can_go_to_stdout(option, tiny_bundle, out):
    argv = [tiny_bundle, "--labels", 1, *FAST, "--out", out / "x.png", option, "-"]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *map(str, argv)], capture_output=True, check=False
    )
    assert done.returncode == 0
    assert done.stderr.startswith(b"1 image in ")
    begins = {"--out": b"\x89PNG", "--save-latents": b"\x93NUMPY", "--stats": b"{\n "}
    assert done.stdout.startswith(begins[option])
    assert leftovers(out) == ([] if option == "--out" else ["x.png"])


def test_outputs_that_are_one_another_or_the_bundle_are_refused(make_bundle, out, capsys):
    bundle = make_bundle()
    before = (bundle / "manifest.json").read_bytes()
    argv = [bundle, "--labels", "1", "--out", out / "x"]
    assert "are one file: give two" in failure(main, [*argv, "--stats", out / "x"], capsys)
    assert "are one file" in failure(main, [*argv, "--stats=-", "--save-latents=-"], capsys)
    for name in ("manifest.json", "new"):
        said = failure(main, [*argv, "--stats", bundle / name], capsys)
        assert f"--stats {bundle / name} belongs to the bundle {bundle}" in said
    assert (bundle / "manifest.json").read_bytes() == before
    assert leftovers(out) == []


@pytest.mark.parametrize("option", [None, "--out", "--stats"])
def test_files_are_written_though_nobody_reads_stdout(option, tiny_bundle, out):
    argv = [tiny_bundle, "--labels", 1, *FAST, "--out", out / "x.png", "--stats", out / "x.json"]
    argv += ["--save-latents", out / "x.npy", *([] if option is None else [option, "-"])]
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, *map(str, argv)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 141
    assert err == "" if option is None else err.startswith("1 image")
    skipped = {"--out": "x.png", "--stats": "x.json"}.get(option)
    assert leftovers(out) == sorted({"x.json", "x.npy", "x.png"} - {skipped})


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_run_that_is_stopped_is_one_line(number, code, tiny_bundle, out):
    argv = [tiny_bundle, "--labels", ",".join("1" * 200), "--mode", "target", "--head-steps", 1000,
            "--quiet", "--out", out / "x.png"]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", ENTRY, *map(str, argv)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    maps = Path(f"/proc/{process.pid}/maps")
    while process.poll() is None and "onnxruntime_pybind11" not in maps.read_text():
        time.sleep(0.1)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert len(err.splitlines()) == 1
    assert leftovers(out) == []


def test_ctrl_c_while_python_imports_is_one_line(tiny_bundle, out):
    argv = [tiny_bundle, "--labels", "1,2", *FAST, "--out", out / "x.png"]
    for part in ("multiarray_umath", "onnxruntime_pybind11"):
        process = subprocess.Popen(
            [sys.executable, "-c", ENTRY, *map(str, argv)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        maps = Path(f"/proc/{process.pid}/maps")
        while process.poll() is None and part not in maps.read_text():
            time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert err == "csd-generate: error: interrupted; nothing was left half-written\n"
