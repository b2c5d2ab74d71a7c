"""Two exports of the same weights are the same files, wherever and by whom they are made."""

from __future__ import annotations

import json
import os
import stat
import textwrap

import pytest

from csd.runtime import Bundle
from csd.runtime.bundle.manifest import file_sha256

from ..helpers import DATA, ROOT, run_python

EXPORT = textwrap.dedent("""
    import os, sys
    os.umask(0o027)
    from csd.export.cli import main
    raise SystemExit(main(sys.argv[1:]))
""")


OPTIONS = ("--head-chain", "--plugins", "--precision", "fp16")


def _export(home, config_files, seed):
    home.mkdir()
    (home / "w.pth").write_bytes((DATA / "draft.pth").read_bytes())
    argv = ["--target", home / "w.pth", "--target-config", config_files["draft"], "--max-batch", 1,
            "--calibration-tokens", 64, "--out", home / "bundle",
            *OPTIONS]  # fmt: skip
    env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
    done = run_python(EXPORT, *argv, cwd=home, env=env)
    assert done.returncode == 0, done.stderr
    return home / "bundle"


@pytest.mark.slow
def test_two_exports_from_two_folders_are_the_same_files(tmp_path, config_files):
    one = _export(tmp_path / "home-of-one", config_files, "1")
    other = _export(tmp_path / "home-of-the-other", config_files, "2")
    hashes = Bundle.open(one).manifest.file_hashes
    assert hashes == Bundle.open(other).manifest.file_hashes
    assert any(name.endswith(".onnx.data") for name in hashes)
    first, second = (json.loads((p / "manifest.json").read_bytes()) for p in (one, other))
    assert first == second
    for path in (one / name for name in (*hashes, "manifest.json")):
        raw = path.read_bytes()
        assert b"home-of-one" not in raw
        assert b'File "' not in raw
        assert str(ROOT).encode() not in raw
        assert stat.S_IMODE(path.stat().st_mode) == 0o640, path.name
    assert first["sources"]["target"] == {
        "path": "w.pth",
        "sha256": file_sha256(DATA / "draft.pth"),
        "weights": "ema",
        "key": "model_ema",
    }
