from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from csd.runtime import OptionError
from csd.runtime.command.files import (
    STDOUT,
    check_outputs,
    check_writable,
    is_stdout,
    output_path,
    write_atomically,
    write_json,
)
from csd.runtime.command.partial import partial_directory, partial_file, remove_abandoned

from ...helpers import run_python

# Who is told apart from the user of the tests by owner and mode.
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
DEAD = 4_000_000  # more than a process number can be


def write(path: Path, content: bytes = b"new") -> None:
    check_writable(path)
    with write_atomically(path) as stream:
        stream.write(content)


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_new_file_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write(tmp_path / "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o777])
def test_a_file_keeps_its_mode(mode, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    path.chmod(mode)
    write(path)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"new", mode)


@ROOT_ONLY
def test_a_file_keeps_its_owner_and_group(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    os.chown(path, 33, 44)
    write(path)
    assert (path.stat().st_uid, path.stat().st_gid, path.read_bytes()) == (33, 44, b"new")


def test_a_file_of_another_owner_is_written_in_place(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(b"old and longer")
    inode = path.stat().st_ino

    def refuse(*_):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "fchmod", refuse)
    write(path)
    assert (path.read_bytes(), path.stat().st_ino) == (b"new", inode)
    assert names(tmp_path) == ["x"]


def test_a_file_with_several_names_keeps_them(tmp_path):
    (tmp_path / "x").write_bytes(b"old")
    os.link(tmp_path / "x", tmp_path / "y")
    write(tmp_path / "y", b"longer than that")
    assert (tmp_path / "x").read_bytes() == b"longer than that"


def test_a_file_that_is_a_mount_of_its_own_is_written_in_place(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"old")

    def busy(*_):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr(os, "replace", busy)
    write(tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"new"
    assert names(tmp_path) == ["x"]


def test_a_link_stays_and_its_target_gets_the_content(tmp_path):
    (tmp_path / "far").mkdir()
    target, link, second = tmp_path / "far" / "x", tmp_path / "link", tmp_path / "second"
    target.write_bytes(b"old")
    link.symlink_to("far/x")
    second.symlink_to("link")
    write(second)
    assert link.is_symlink()
    assert second.is_symlink()
    assert target.read_bytes() == b"new"
    assert (names(tmp_path), names(tmp_path / "far")) == (["far", "link", "second"], ["x"])


def test_a_link_to_nothing_makes_its_target(tmp_path):
    (tmp_path / "link").symlink_to("x")
    check_writable(tmp_path / "link")
    assert names(tmp_path) == ["link"]
    write(tmp_path / "link")
    assert (tmp_path / "x").read_bytes() == b"new"
    assert (tmp_path / "link").is_symlink()


def test_links_in_a_circle_are_refused(tmp_path):
    (tmp_path / "x").symlink_to("x")
    with pytest.raises(OSError, match="symbolic links") as refused:
        check_writable(tmp_path / "x")
    assert refused.value.filename == str(tmp_path / "x")


def test_a_parent_of_a_link_is_the_one_of_its_target(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a/b")
    write(tmp_path / "link" / ".." / "x")
    assert names(tmp_path / "a") == ["b", "x"]


def test_a_pipe_with_a_name_is_written_to(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    check_writable(path)  # does not wait for a reader
    got = []
    reader = threading.Thread(target=lambda: got.append(path.read_bytes()))
    reader.start()
    write(path, b"x" * 100_000)
    reader.join()
    assert got == [b"x" * 100_000]
    assert stat.S_ISFIFO(path.stat().st_mode)


@ROOT_ONLY
def test_devices_stay_devices(tmp_path):
    for name, minor in (("null", 3), ("full", 7)):
        try:
            os.mknod(tmp_path / name, 0o666 | stat.S_IFCHR, os.makedev(1, minor))
        except PermissionError:
            pytest.skip("no devices can be made here")
    write(tmp_path / "null")
    check_writable(tmp_path / "full")
    with pytest.raises(OSError, match="No space left") as refused:
        write(tmp_path / "full")
    assert refused.value.filename == str(tmp_path / "full")
    assert all(stat.S_ISCHR((tmp_path / name).stat().st_mode) for name in ("null", "full"))
    assert names(tmp_path) == ["full", "null"]


def test_a_socket_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("x")
        with pytest.raises(OSError, match="No such device or address"):
            check_writable(Path("x"))
        assert stat.S_ISSOCK(os.stat("x").st_mode)


def test_descriptors_of_this_process_are_written_to(tmp_path):
    reader, writer = os.pipe()
    try:
        (tmp_path / "link").symlink_to(f"/dev/fd/{writer}")
        for path in (f"/dev/fd/{writer}", f"/proc/self/fd/{writer}", tmp_path / "link"):
            write(Path(path))
            assert os.read(reader, 9) == b"new"
        with pytest.raises(OSError, match="Permission denied"):
            check_writable(Path(f"/dev/fd/{reader}"))
    finally:
        os.close(reader)
        os.close(writer)
    with pytest.raises(OSError, match="Bad file descriptor"):
        check_writable(Path(f"/dev/fd/{writer}"))


def test_a_descriptor_of_a_file_is_not_opened_a_second_time(tmp_path):
    with (tmp_path / "x").open("wb") as stream:
        stream.write(b"before ")
        stream.flush()
        write(Path(f"/dev/fd/{stream.fileno()}"))
        stream.write(b" after")
    assert (tmp_path / "x").read_bytes() == b"before new after"


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/fd/1"])
def test_stdout_is_written_to_in_order(name):
    code = (
        "from pathlib import Path; from csd.runtime.command.files import write_json;"
        "print('before');"
        f"write_json(Path({name!r}), [1]); print('after')"
    )
    done = run_python(code)
    assert (done.stdout, done.stderr) == ("before\n[\n 1\n]\nafter\n", "")


def test_a_file_can_be_called_as_stdout_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert output_path("-") == STDOUT
    assert is_stdout(output_path("-"))
    assert not is_stdout(output_path("./-"))
    write_json(output_path("./-"), 1)
    assert names(tmp_path) == ["-"]


@pytest.mark.parametrize("size", [1, 200, 255])
def test_a_name_may_be_as_long_as_the_file_system_allows(size, tmp_path):
    write(tmp_path / ("é" * (size // 2) + "x" * (size % 2)))
    assert len(names(tmp_path)) == 1


@pytest.mark.parametrize("place", [".", "gone/x", "file/x"])
def test_a_place_that_cannot_be_written_is_named_as_it_was_given(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    for writes in (check_writable, write):
        with pytest.raises(OSError, match="directory") as refused:
            writes(Path(place))
        assert refused.value.filename == str(Path(place))
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_file_that_may_not_be_written_is_refused(tmp_path):
    (tmp_path / "x").touch(0o444)
    with pytest.raises(PermissionError):
        check_writable(tmp_path / "x")


def test_an_error_leaves_what_was_there(tmp_path):
    (tmp_path / "x").write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), write_atomically(tmp_path / "x") as stream:
        stream.write(b"half" * (1 // 0))
    assert (tmp_path / "x").read_bytes() == b"old"
    assert names(tmp_path) == ["x"]


def test_a_check_touches_nothing(tmp_path):
    (tmp_path / "x").write_bytes(b"old")
    before = (tmp_path / "x").stat()
    check_writable(tmp_path / "x")
    check_writable(tmp_path / "new")
    after = (tmp_path / "x").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert names(tmp_path) == ["x"]


def test_a_full_disk_leaves_a_file_that_is_written_in_place(small_disk):
    path = small_disk / "x"
    path.write_bytes(b"old")
    os.link(path, small_disk / "y")
    with pytest.raises(OSError, match="No space left"):
        write(path, b"x" * (1 << 24))
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("one", "other"),
    [("x", "x"), ("x", "./x"), ("x", "folder/../x"), ("new", "./new"), ("x", "link"),
     ("x", "hard"), ("new", "dangling"), ("-", "-"), ("-", "/dev/stdout"), ("pipe", "pipe")],
)  # fmt: skip
def test_outputs_that_are_one_another_are_refused(one, other, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("x").touch()
    Path("link").symlink_to("folder/../x")
    Path("dangling").symlink_to("new")
    os.link("x", "hard")
    os.mkfifo("pipe")
    before = names(tmp_path)
    with pytest.raises(OptionError, match=r"--out .* and --stats .* are one file: give two"):
        check_outputs({"--out": output_path(one), "--stats": output_path(other), "--json": None})
    assert names(tmp_path) == before


def test_a_device_takes_any_number_of_outputs():
    check_outputs({"--out": Path("/dev/null"), "--stats": Path("/dev/null")})


def test_outputs_that_differ_are_checked_for_writing(tmp_path):
    check_outputs({"--out": tmp_path / "x", "--stats": tmp_path / "y"})
    with pytest.raises(FileNotFoundError):
        check_outputs({"--out": tmp_path / "x", "--stats": tmp_path / "gone" / "y"})
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "output", ["bundle/manifest.json", "bundle/new", "bundle/deep/new", "./bundle/../bundle/x",
               "linked/manifest.json", "link", "hard", "store/blob", "classifier"]
)  # fmt: skip
def test_outputs_that_are_an_input_are_refused(output, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bundle/deep").mkdir(parents=True)
    Path("store").mkdir()
    for name in ("bundle/manifest.json", "store/blob", "classifier"):
        Path(name).write_text("content")
    Path("bundle/graph.onnx").symlink_to("../store/blob")
    Path("linked").symlink_to("bundle")
    Path("link").symlink_to("bundle/manifest.json")
    os.link("bundle/manifest.json", "hard")
    inside = {"the bundle": Path("bundle"), "the classifier": Path("classifier")}
    with pytest.raises(OptionError, match=r"belongs to the .*: give another path"):
        check_outputs({"--out": Path(output)}, inside=inside)
    check_outputs({"--out": Path("bundle.png"), "--stats": STDOUT}, inside=inside)
    assert Path("bundle/manifest.json").read_text() == "content"


def test_what_a_killed_writer_left_is_removed_by_the_next_one(tmp_path):
    (tmp_path / "keep").write_bytes(b"old")
    code = (
        "import os, signal; from pathlib import Path; from csd.runtime.command.files import *\n"
        f"with partial_directory(Path({str(tmp_path / 'keep')!r})) as folder:\n"
        " (folder / 'graph').write_bytes(b'half')\n"
        f" with write_atomically(Path({str(tmp_path / 'keep')!r})) as stream:\n"
        "  stream.write(b'half'); stream.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert run_python(code).returncode == -signal.SIGKILL
    left = [name for name in names(tmp_path) if name != "keep"]
    assert len(left) == 2
    assert all(re.fullmatch(r"\.keep\.\d+\.\d+\.partial", name) for name in left)
    write(tmp_path / "other")
    assert set(left) < set(names(tmp_path))
    assert (tmp_path / "keep").read_bytes() == b"old"
    write(tmp_path / "keep")
    assert names(tmp_path) == ["keep", "other"]


@pytest.mark.parametrize(
    "number", [DEAD, os.getpid()], ids=["dead", "ours, from another container"]
)
def test_an_abandoned_neighbour_is_one_that_nobody_has_locked(number, tmp_path):
    path = tmp_path / f".x.{number}.1.partial"
    path.touch()
    assert remove_abandoned(tmp_path / "x") == ()
    assert names(tmp_path) == []


def test_a_neighbour_that_is_written_stays(tmp_path):
    with partial_file(tmp_path / "x") as mine, partial_directory(tmp_path / "y") as folder:
        assert remove_abandoned(tmp_path / "x") == (mine.path,)
        assert remove_abandoned(tmp_path / "y") == (folder,)
        # Of another container: no process has its number, and its lock is held all the same.
        other = tmp_path / f".x.{DEAD}.7.partial"
        mine.path.rename(other)
        assert remove_abandoned(tmp_path / "x") == (other,)
        other.rename(mine.path)
    assert names(tmp_path) == []


def test_a_neighbour_whose_process_lives_stays(tmp_path):
    # A process that has the number of a dead one: it may as well be the writer, without locks.
    path = tmp_path / f".x.{os.getppid()}.1.partial"
    path.touch()
    assert remove_abandoned(tmp_path / "x") == (path,)


def test_where_there_are_no_locks_nothing_is_removed(tmp_path, monkeypatch):
    path = tmp_path / f".x.{DEAD}.1.partial"
    path.touch()

    def none(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", none)
    write(tmp_path / "x")
    assert names(tmp_path) == [path.name, "x"]


@pytest.mark.parametrize(
    "name", ["x.partial", ".x.partial", f".x.{DEAD}.partial", f".xy.{DEAD}.1.partial",
             f".x.{DEAD}.1.partial.txt", f"x.{DEAD}.1.partial", f".x.{DEAD}.a.partial"]
)  # fmt: skip
def test_other_names_stay(name, tmp_path):
    (tmp_path / name).touch()
    write(tmp_path / "x")
    assert names(tmp_path) == sorted([name, "x"])


def test_a_link_or_pipe_of_such_a_name_stays(tmp_path):
    (tmp_path / "precious").touch()
    (tmp_path / f".x.{DEAD}.1.partial").symlink_to("precious")
    os.mkfifo(tmp_path / f".x.{DEAD}.2.partial")
    write(tmp_path / "x")
    assert len(names(tmp_path)) == 4


def test_a_directory_is_removed_unless_it_was_renamed(tmp_path):
    with partial_directory(tmp_path / "out") as folder:
        (folder / "x").touch()
        folder.rename(tmp_path / "out")
    assert names(tmp_path) == ["out"]
    with pytest.raises(ZeroDivisionError), partial_directory(tmp_path / "out") as folder:
        (folder / "x").touch(1 // 0)
    assert names(tmp_path) == ["out"]


def test_many_writers_of_one_file_leave_one_whole_content(tmp_path):
    contents = [bytes([65 + k]) * 10_000 for k in range(8)]

    def repeat(content: bytes) -> None:
        for _ in range(20):
            write(tmp_path / "x", content)

    threads = [threading.Thread(target=repeat, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "x").read_bytes() in contents
    assert names(tmp_path) == ["x"]


def test_json_is_written_as_text(tmp_path):
    write_json(tmp_path / "x", {"a": [1, None]})
    assert json.loads((tmp_path / "x").read_text(encoding="utf-8")) == {"a": [1, None]}


def test_one_place_of_the_code_writes_files():
    """Other modules write through `files.py`, or into a folder that is their own for the time."""
    root = Path(__file__).parents[3]
    # Open for reading, logs that grow, a folder that is temporary, or plugins, which stand alone.
    # An export writes into the folder that becomes the bundle.
    known = {
        "export/onnx/to_onnx.py", "export/onnx/weights.py",
        "models/training/evaluate.py", "models/training/loop.py", "plugins/build.py",
        "tools/measure/models/weights.py",
        "runtime/command/files.py", "runtime/command/frame.py", "runtime/command/partial.py",
    }  # fmt: skip
    writing = re.compile(
        r"write_text\(|write_bytes\(|open\([^)]*[\"'][wax]b?[\"']|os\.replace\(|np\.savez?\(|save_file\("
    )
    found = {
        str(path.relative_to(root))
        for folder in ("export", "models", "plugins", "runtime", "tools")
        for path in (root / folder).rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if writing.search(line) and not re.search(r"np\.savez?\(stream", line)
    }
    assert found <= known


@pytest.mark.skipif(sys.platform != "linux", reason="needs namespaces")
def test_the_machines_own_devices_stay(tmp_path):
    """As root in a container: its /dev/null is written to. A tmpfs of our own stands for /dev."""
    script = (
        "mount -t tmpfs none /mnt && mknod -m 666 /mnt/null c 1 3 && "
        f'{sys.executable} -c "from pathlib import Path; from csd.runtime.command.files import *; '
        "check_writable(Path('/mnt/null')); write_json(Path('/mnt/null'), 1)\" && "
        "test -c /mnt/null && ls -A /mnt"
    )
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, check=False
    )
    if "unshare" in done.stderr or "mount" in done.stderr or "mknod" in done.stderr:
        pytest.skip(f"no namespace of mounts: {done.stderr}")
    assert (done.returncode, done.stdout) == (0, "null\n"), done.stderr
