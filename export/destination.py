"""Where a bundle is written to: what may be replaced, and how nothing is lost on the way.

A bundle is made in a temporary folder beside its place (`runtime/command/partial.py`) and renamed.
Where a bundle is replaced, whatever the old folder holds that its manifest does not name is the
user's: it is kept, under its name or, where the new bundle has such a file, with `.kept` behind it.

| stage | the place holds | a process that is killed there leaves beside it |
| --- | --- | --- |
| 1, the new bundle is written | the old bundle | the unfinished new one |
| 2, what is the user's is linked into the new one | the old bundle | the unfinished new one |
| 3, the folders are exchanged, in one step | the new bundle and what is the user's | the old one |
| 4, the old files are removed | the new bundle and what is the user's | parts of the old one |

What is left beside it is removed by the next export to that place. Folders are exchanged by
`renameat2` of Linux. A file system that cannot do that has the old folder renamed to
`.NAME.replaced` first: only there the place is empty for one instant, with both bundles beside it,
and the next export to it puts the old one back.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import stat
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from pathlib import Path

from ..runtime.bundle.checks import read_manifest
from ..runtime.bundle.folder import SIGNATURE_FILE, BundleFolder
from ..runtime.bundle.manifest import MANIFEST_FILE
from ..runtime.command.files import only_writer, partial_directory, remove_abandoned
from ..runtime.command.text import check_text, plain
from ..runtime.errors import BundleError, ExportError

_AT_FDCWD = -100
_EXCHANGE = 2
# What a kernel or file system answers that cannot exchange; the rename that follows then says
# what is wrong, if something is.
_CANNOT_EXCHANGE = {errno.EINVAL, errno.ENOSYS, errno.EXDEV, errno.ENOTSUP, errno.EPERM}
_MOST_NAMED = 5

Report = Callable[[str], None]


def check_destination(out: Path, force: bool) -> None:
    """Check that a bundle may be written to `out`.

    Raises:
        ExportError: something is there that may not be replaced, or another export writes there.
    """
    place = _place(out)
    check_text(place, "a bundle", ExportError)  # onnxruntime and TensorRT would refuse it later
    _check_parent(out, place)
    _check_alone(out, place)
    with _alone(out, place):
        _check_content(out, place, force)


def _place(out: Path) -> Path:
    """Return the folder that a path leads to, which may not be there yet."""
    place = Path(os.path.realpath(out))
    if out.is_symlink() and not place.exists():
        raise ExportError(
            f"{out} is a link to {place}, which is not there: remove the link, or give "
            f"--out {place}"
        )
    return place


def _check_parent(out: Path, place: Path) -> None:
    """Check that the folder can be made, or replaced, as far as that can be said before."""
    parent = next((folder for folder in place.parents if os.path.lexists(folder)), place)
    if not parent.is_dir():
        raise ExportError(f"{out} cannot be made, as {parent} is a file: give another --out")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ExportError(f"{out} cannot be made, as {parent} is not writable: give another --out")


def _check_content(out: Path, place: Path, force: bool) -> None:
    if not place.exists():
        return
    if not place.is_dir():
        raise ExportError(f"{out} is a file: give a directory for the bundle")
    if os.path.ismount(place):
        raise ExportError(
            f"{out} is a file system of its own, which cannot be renamed: give a new folder in "
            f"it, as --out {out / 'bundle'}"
        )
    if not any(place.iterdir()):
        return
    if not os.path.lexists(place / MANIFEST_FILE):
        raise ExportError(f"{out} holds other files: give an empty or a new directory")
    _named_files(out, place)
    if not force:
        raise ExportError(f"{out} holds a bundle: give --force to replace it, or another --out")


def _named_files(out: Path, place: Path) -> frozenset[str]:
    """Return what a bundle's manifest names, and the manifest.

    Raises:
        ExportError: it is none of ours, so that nobody knows what may be removed.
    """
    try:
        manifest = read_manifest(BundleFolder.at(place))
    except (BundleError, OSError) as error:
        reason = str(error).removeprefix(f"cannot read bundle {place}: ").partition(": export")[0]
        raise ExportError(
            f"{out} holds a {MANIFEST_FILE} that is not of a bundle of csd ({plain(reason)}): give "
            "another --out, or remove the folder yourself if you do not need it"
        ) from error
    # Code was built by the user.
    return frozenset((*manifest.file_hashes, MANIFEST_FILE, SIGNATURE_FILE)) - {*manifest.code}


def _check_alone(out: Path, place: Path, own: Path | None = None) -> None:
    """Check that no other export writes to a place; what killed ones left there goes.

    Raises:
        ExportError: one does.
    """
    others = [path for path in remove_abandoned(place) if path != own]
    if others:
        raise ExportError(f"{_told(out)}; if none runs, remove {others[0]}")


@contextlib.contextmanager
def _alone(out: Path, place: Path) -> Generator[None]:
    """Keep builds of engines out of a bundle that will be replaced.

    Raises:
        ExportError: one runs.
    """
    if not place.is_dir():
        yield
        return
    with only_writer(place) as alone:
        if not alone:
            raise ExportError(_told(out))
        yield


@contextlib.contextmanager
def only_export(root: Path) -> Generator[None]:
    """Keep other exports out of a bundle that is changed where it lies.

    Raises:
        ExportError: one runs.
    """
    with only_writer(root) as alone:
        if not alone:
            raise ExportError(f"another csd-export writes to {root}: wait for it, and start again")
        yield


def check_own(root: Path, names: Iterable[str]) -> None:
    """Check that what will be written is a bundle's own, and no link to what others use.

    Raises:
        ExportError: it is a link.
    """
    try:
        BundleFolder.at(root).check_own(names)
    except BundleError as error:
        raise ExportError(str(error)) from error


def _told(out: Path) -> str:
    return (
        f"another csd-export writes to {out}: wait for it and give --force, or give another --out"
    )


@contextlib.contextmanager
def new_bundle(out: Path, *, force: bool, report: Report) -> Generator[Path]:
    """Make a folder to write a bundle into, and put it into its place at the end.

    Args:
        out: the place; a link to a folder stays, and its target is replaced.
        force: replace a bundle that is there.
        report: called with a line that names files that were kept.

    Raises:
        ExportError: see `check_destination`.
        OSError: nothing can be written there. The place is then as it was.
    """
    place = _place(out)
    _check_content(out, place, force)
    made = [folder for folder in place.parents if not folder.exists()]
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _alone(out, place), partial_directory(place) as partial:
            _check_alone(out, place, partial)
            _recover(out, place, partial)
            _check_content(out, place, force)
            yield partial
            _move_into_place(out, partial, place, report)
    finally:
        for folder in made:  # those that hold nothing go again
            with contextlib.suppress(OSError):
                folder.rmdir()


def _move_into_place(out: Path, partial: Path, place: Path, report: Report) -> None:
    """Rename, with what is the user's taken along."""
    if not place.exists():
        os.rename(partial, place)
        return
    _like(place, partial)
    if not any(place.iterdir()):
        os.rename(partial, place)  # an empty folder makes room by itself
        return
    kept = _keep(place, partial, _named_files(out, place))
    old = _exchange(partial, place)
    try:
        kept |= _keep(old, place, _named_files(out, old) | set(kept))  # what came meanwhile
    except BaseException:
        os.rename(old, _set_aside(place))  # rather than lose it
        raise
    os.rename(old, partial)  # a name whose owner, once dead, is known to be
    shutil.rmtree(partial)
    if kept:
        names = sorted(kept.values())
        more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        shown = plain(", ".join(names[:_MOST_NAMED]))
        report(f"kept in {out}, as the old bundle did not name it: {shown}{more}")


def _like(old: Path, new: Path) -> None:
    """Give a folder the mode and, where that is allowed, the owner of another."""
    status = old.stat()
    with contextlib.suppress(PermissionError):
        os.chown(new, status.st_uid, status.st_gid)
    os.chmod(new, stat.S_IMODE(status.st_mode))


def _keep(old: Path, new: Path, named: Collection[str]) -> dict[str, str]:
    """Link what `named` does not list from a folder into another; returns old and new names."""
    kept: dict[str, str] = {}
    for path in _unnamed(old, named):
        name = path.relative_to(old)
        goal = _goal(path, new / name)
        if goal is not None:
            goal.parent.mkdir(parents=True, exist_ok=True)
            _link(path, goal)
            kept[name.as_posix()] = goal.relative_to(new).as_posix()
    return kept


def _unnamed(root: Path, named: Collection[str]) -> Iterator[Path]:
    """Yield files, links, and folders that are empty; links to folders are not entered."""
    for folder, folders, files in os.walk(root):
        here = Path(folder)
        links = [name for name in folders if (here / name).is_symlink()]
        for name in (*files, *links):
            if (here / name).relative_to(root).as_posix() not in named:
                yield here / name
        if not folders and not files and here != root:
            yield here


def _goal(path: Path, wanted: Path) -> Path | None:
    """Return where to link a file; None where it is there, or is an empty folder of that name."""
    for number in range(1, 10_000):
        ending = "" if number == 1 else f".kept{number - 1 if number > 2 else ''}"
        goal = wanted.with_name(wanted.name + ending)
        if not os.path.lexists(goal):
            return goal
        if _same(path, goal):
            return None
    raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), str(wanted))


def _same(one: Path, other: Path) -> bool:
    """Whether two names are of one file, or of links to one place, or both of folders."""
    if one.is_symlink() or other.is_symlink():
        both = one.is_symlink() and other.is_symlink()
        return both and os.readlink(one) == os.readlink(other)
    return (one.is_dir() and other.is_dir()) or os.path.samestat(one.stat(), other.stat())


def _link(path: Path, goal: Path) -> None:
    """Give a file a second name; a copy where the file system has no such names."""
    if path.is_symlink():
        os.symlink(os.readlink(path), goal)
    elif path.is_dir():
        goal.mkdir()
    else:
        try:
            os.link(path, goal)
        except OSError as error:
            if error.errno not in {errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.EXDEV}:
                raise
            shutil.copy2(path, goal)


def _exchange(new: Path, place: Path) -> Path:
    """Put a folder into the place of another; returns where the other is then."""
    try:
        _rename_both(new, place)
        return new
    except OSError as error:
        if error.errno not in _CANNOT_EXCHANGE:
            raise
    aside = _set_aside(place)
    os.rename(place, aside)
    try:
        os.rename(new, place)
    except OSError:
        os.rename(aside, place)
        raise
    return aside


def _rename_both(one: Path, other: Path) -> None:
    """Exchange two names in one step (`renameat2` with `RENAME_EXCHANGE`)."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    names = os.fsencode(one), os.fsencode(other)
    if rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _EXCHANGE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(other))


def _set_aside(place: Path) -> Path:
    return place.with_name(f".{place.name}.replaced")


def _recover(out: Path, place: Path, partial: Path) -> None:
    """Tidy up after an export that was killed while a bundle was set aside (`_exchange`)."""
    aside = _set_aside(place)
    if not os.path.lexists(aside):
        return
    named = _named_files(aside, aside)
    if not place.exists():
        os.rename(aside, place)
        return
    _check_content(out, place, force=True)
    _keep(aside, place, named)
    os.rename(aside, partial / "old")
    shutil.rmtree(partial / "old")
