"""A bundle is replaced: nothing of the user is lost, and no kill leaves a place without one."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from csd.export.destination import check_destination, new_bundle
from csd.runtime import Bundle
from csd.runtime.bundle.manifest import EngineSpec, Manifest
from csd.runtime.errors import ExportError

from ..helpers import leftovers, run_python, tiny_config

ENGINE = EngineSpec(
    "decoder", "tensorrt", "fp32", "engines/a.engine", "0" * 64, 1, "10.3", "linux-x86_64",
    ("8.7",), 1.0, {},
)  # fmt: skip


def write(folder, name, files=("engines/a.engine", "b.engine")):
    """Write a bundle of engines only."""
    engines = []
    for file in files:
        path = folder / file
        path.parent.mkdir(exist_ok=True)
        content = f"{name} {file}".encode()
        path.write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        engines.append(dataclasses.replace(ENGINE, file=file, sha256=sha256))
    manifest = Manifest(
        name, {"target": tiny_config("target")}, 20, 8, 32, {}, engines=tuple(engines)
    )
    (folder / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")


@pytest.fixture
def place(tmp_path):
    """A bundle `old` with files of the user's own."""
    place = tmp_path / "parent" / "bundle"
    place.mkdir(parents=True)
    write(place, "old", ("engines/a.engine", "b.engine", "engines/old.engine"))
    (place / "thesis.txt").write_text("mine", encoding="utf-8")
    (place / "engines" / "notes.txt").write_text("mine too", encoding="utf-8")
    (place / "empty").mkdir()
    (place / "link").symlink_to("/nowhere")
    (place / "folder").symlink_to(tmp_path, target_is_directory=True)
    return place


def replace(place, files=("engines/a.engine", "b.engine"), name="new"):
    lines = []
    with new_bundle(place, force=True, report=lines.append) as folder:
        write(folder, name, files)
    return lines


def check_users_files(place):
    assert (place / "thesis.txt").read_text(encoding="utf-8") == "mine"
    assert (place / "engines" / "notes.txt").read_text(encoding="utf-8") == "mine too"
    assert (place / "empty").is_dir()
    assert os.readlink(place / "link") == "/nowhere"
    assert (place / "folder").is_symlink()


def test_only_what_the_manifest_names_is_replaced_and_the_rest_is_kept_and_named(place):
    place.chmod(0o750)
    lines = replace(place)
    assert Bundle.open(place).manifest.name == "new"
    check_users_files(place)
    assert leftovers(place) == [
        "b.engine", "empty", "engines", "folder", "link", "manifest.json", "thesis.txt",
    ]  # fmt: skip
    assert leftovers(place / "engines") == ["a.engine", "notes.txt"]
    assert leftovers(place.parent) == ["bundle"]
    assert place.stat().st_mode & 0o777 == 0o750
    assert lines == [
        f"kept in {place}, as the old bundle did not name it: empty, engines/notes.txt, folder, "
        "link, thesis.txt"
    ]
    assert replace(place), "they are named again"


def test_a_file_of_the_users_with_the_name_of_a_new_one_gets_another(place):
    lines = replace(place, ("b.engine", "thesis.txt"))
    assert Bundle.open(place).manifest.name == "new"
    assert (place / "thesis.txt.kept").read_text(encoding="utf-8") == "mine"
    assert "thesis.txt.kept" in lines[0]
    replace(place, ("thesis.txt",))
    assert (place / "thesis.txt.kept").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    "manifest", ["{}", "[]", '{"schema_version": 2}', '{"name": "an app", "version": 2}', "\xff"]
)
def test_a_folder_whose_manifest_is_not_ours_is_refused_and_stays(tmp_path, manifest):
    (tmp_path / "manifest.json").write_bytes(manifest.encode("latin-1"))
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(ExportError, match=r"manifest\.json that is not of a bundle of csd .*give"):
        check_destination(tmp_path, force=True)
    with pytest.raises(ExportError, match="not of a bundle"):
        replace(tmp_path)
    assert leftovers(tmp_path) == ["manifest.json", "photo.jpg"]


def test_a_link_to_a_bundle_stays_and_its_target_is_replaced(place, tmp_path):
    link = tmp_path / "link"
    link.symlink_to("parent/bundle")
    with pytest.raises(ExportError, match="holds a bundle: give --force"):
        check_destination(link, force=False)
    replace(link)
    assert os.readlink(link) == "parent/bundle"
    assert Bundle.open(link).manifest.name == Bundle.open(place).manifest.name == "new"
    assert leftovers(place.parent) == ["bundle"]


def test_a_place_below_a_file_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").touch()
    for place in ("file/bundle", "file/deep/er"):
        with pytest.raises(ExportError, match=r"file is a file: give another --out"):
            check_destination(tmp_path / place, force=True)
    assert leftovers(tmp_path) == ["file"]


def test_the_root_of_all_folders_is_refused():
    with pytest.raises(ExportError, match=r"is a file system of its own|holds other"):
        check_destination(Path("/"), force=True)


def test_a_place_that_is_not_writable_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_, **__: False)
    with pytest.raises(ExportError, match=r"is not writable: give another --out"):
        check_destination(tmp_path / "deep" / "bundle", force=False)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("target", ["gone", "link"])
def test_a_link_to_nothing_is_refused_before_any_work(tmp_path, target):
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(ExportError, match=r"is a link to .*, which is not there: remove the link"):
        check_destination(tmp_path / "link", force=True)
    assert leftovers(tmp_path) == ["link"]


def test_a_second_export_to_a_place_is_told_at_once(place):
    with new_bundle(place, force=True, report=print) as folder:
        write(folder, "new")
        code = textwrap.dedent("""
            import sys
            from pathlib import Path
            from csd.export.destination import check_destination, new_bundle
            check = [lambda p: check_destination(p, True),
                     lambda p: new_bundle(p, force=True, report=print).__enter__()]
            for one in check:
                try:
                    one(Path(sys.argv[1]))
                except Exception as error:
                    print(type(error).__name__, error)
        """)
        shown = run_python(code, place).stdout.splitlines()
        told = f"ExportError another csd-export writes to {place}: wait for it and give --force, or"
        assert len(shown) == 2
        assert all(line.startswith(told) for line in shown)
    assert Bundle.open(place).manifest.name == "new"
    check_destination(place, force=True)


def test_a_failed_export_leaves_the_old_bundle_and_nothing_beside_it(place):
    with pytest.raises(OSError), new_bundle(place, force=True, report=print) as folder:  # noqa: PT011, PT012
        write(folder, "new")
        raise OSError
    assert Bundle.open(place).manifest.name == "old"
    check_users_files(place)
    assert leftovers(place.parent) == ["bundle"]


KILLED = textwrap.dedent("""
    import errno, os, shutil, signal, sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    from csd.export import destination
    from tests.export.test_destination import check_users_files, replace
    from csd.runtime import Bundle
    place, exchange = Path(sys.argv[2]), sys.argv[3] == "exchange"

    def killed_before(operation):
        left = [operation]
        def wrap(call):
            def wrapped(*args, **kwargs):
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
                return call(*args, **kwargs)
            return wrapped
        for name in ("link", "rename", "symlink", "mkdir", "chmod", "unlink", "rmdir", "open"):
            setattr(os, name, wrap(getattr(os, name)))
        destination._rename_both = wrap(destination._rename_both)

    def no_exchange(one, other):
        raise OSError(errno.ENOSYS, "no")

    if not exchange:
        destination._rename_both = no_exchange
    seen, away = [], 0
    for operation in range(1000):
        before = Bundle.open(place).manifest.name
        child = os.fork()
        if child == 0:
            killed_before(operation)
            replace(place, name=f"new {operation}")
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if place.exists():
            seen.append(Bundle.open(place).manifest.name)
            check_users_files(place)
        else:
            away += 1
        assert os.WIFEXITED(status) or os.WTERMSIG(status) == signal.SIGKILL
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        replace(place, name="again")
        check_users_files(place)
        assert os.listdir(place.parent) == ["bundle"], os.listdir(place.parent)
    print(operation, away, len({name for name in seen if name.startswith("new")}))
""")


@pytest.mark.parametrize(("exchange", "away"), [("exchange", 0), ("two renames", 1)])
def test_a_kill_at_any_operation_leaves_the_old_or_the_new_bundle(place, exchange, away):
    from ..helpers import ROOT

    done = run_python(KILLED, ROOT, place, exchange)
    assert done.returncode == 0, done.stderr
    operations, gone, new = map(int, done.stdout.split())
    print(f"killed before each of {operations} operations: {gone} times the place was empty")
    assert operations > 20
    assert gone == away
    assert new > 5, "some kills came after the exchange"
    assert leftovers(place.parent) == ["bundle"]


def test_a_file_that_comes_while_bundles_are_exchanged_is_kept(place, monkeypatch):
    from csd.export import destination

    rename = destination._rename_both

    def late(one, other):
        (place / "late.txt").write_text("late", encoding="utf-8")
        rename(one, other)

    monkeypatch.setattr(destination, "_rename_both", late)
    assert "late.txt" in replace(place)[0]
    assert (place / "late.txt").read_text(encoding="utf-8") == "late"


@pytest.mark.skipif(
    shutil.which("unshare") is None or os.geteuid() != 0, reason="needs root and unshare"
)
def test_a_file_system_of_its_own_is_refused_before_any_work(tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from csd.export.destination import check_destination\n"
        "check_destination(Path(sys.argv[1]), True)"
    )
    script = 'mount -t tmpfs none "$1" && exec "$2" -c "$3" "$1"'
    argv = ["unshare", "-m", "sh", "-c", script, "sh", str(tmp_path), sys.executable, code]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("no private mounts here")
    assert f"{tmp_path} is a file system of its own" in done.stderr
