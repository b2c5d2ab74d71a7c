from __future__ import annotations

import json
import os
import shutil

import pytest

from csd.runtime import Bundle
from csd.runtime.bundle import verification
from csd.runtime.bundle.verification import FileCheck
from csd.runtime.errors import BundleError, OptionError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of this test's own."""
    folder = tmp_path / "own-cache"
    monkeypatch.setenv("CSD_CACHE_DIR", str(folder))
    return folder / "verified.json"


@pytest.fixture
def hashed(monkeypatch):
    """Names of the files that are hashed."""
    names = []
    real = verification.file_sha256

    def counted(path):
        names.append(path.name)
        return real(path)

    monkeypatch.setattr(verification, "file_sha256", counted)
    return names


@pytest.fixture
def settled(make_bundle, monkeypatch):
    """A bundle whose files were written long enough ago to be remembered."""
    monkeypatch.setattr(verification, "_SETTLED_SECONDS", -1.0)
    return make_bundle()


def load(bundle, policy):
    with Bundle.open(bundle, verify_files=policy).session() as session:
        session.bundle.head_draft("target")


def test_files_are_hashed_when_they_are_loaded_and_remembered(settled, cache, hashed):
    opened = Bundle.open(settled)
    assert hashed == []
    opened.session().close()
    files = set(opened.manifest.file_hashes)
    assert set(hashed) == files
    assert len(hashed) == len(files), "each once"
    assert len(json.loads(cache.read_bytes())) == len(files)
    hashed.clear()
    load(settled, "once")
    load(settled, "never")
    assert hashed == []
    load(settled, "always")
    assert set(hashed) == files


def test_a_file_that_changed_is_hashed_again(settled, cache, hashed):
    load(settled, "once")
    hashed.clear()
    path = settled / "decoder.onnx.data"
    raw, status = path.read_bytes(), path.stat()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # and hides it
    with pytest.raises(BundleError, match=r"decoder\.onnx\.data was altered .*: export it again"):
        load(settled, "once")
    load(settled, "never")
    path.write_bytes(raw)
    load(settled, "once")
    # The same content in a new file is one that was not seen yet.
    hashed.clear()
    shutil.copy(path, settled / "copy")
    os.replace(settled / "copy", path)
    load(settled, "once")
    assert hashed == ["decoder.onnx.data"]


def test_a_file_written_a_moment_ago_is_not_remembered(make_bundle, cache, hashed):
    bundle = make_bundle()
    now = (bundle / "decoder.onnx").stat().st_ctime
    check = FileCheck(Bundle.open(bundle).check.folder, Bundle.open(bundle).manifest.file_hashes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verification.time, "time", lambda: now + 1)
        check(["decoder.onnx"])
        assert not cache.exists()
    check(["decoder.onnx"])
    assert hashed == ["decoder.onnx"], "once in the life of a bundle that is open"


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"x": 1}', b"[" * 10**5, b"\xff"])
def test_a_cache_that_is_damaged_is_written_anew(content, settled, cache, hashed):
    cache.parent.mkdir()
    cache.write_bytes(content)
    load(settled, "once")
    hashed.clear()
    load(settled, "once")
    assert hashed == []


def test_a_cache_that_cannot_be_written_costs_time_only(settled, cache, hashed):
    cache.parent.write_text("a file", encoding="utf-8")
    load(settled, "once")
    load(settled, "once")
    assert hashed.count("decoder.onnx") == 2


def test_the_oldest_entries_go(settled, cache, monkeypatch):
    monkeypatch.setattr(verification, "_MOST_ENTRIES", 2)
    load(settled, "once")
    kept = list(json.loads(cache.read_bytes()).values())
    hashes = Bundle.open(settled).manifest.file_hashes
    assert kept[-1] in hashes.values()
    assert len(kept) == 2


def test_a_policy_that_is_not_known_is_one_line(tiny_bundle):
    with pytest.raises(OptionError, match="verify-files"):
        Bundle.open(tiny_bundle, verify_files="sometimes")
