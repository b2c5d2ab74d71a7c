"""What a file of weights is, by its content: its name does not count.

What a download leaves in place of weights (a web page, a Git LFS pointer, half of a file) is called
what it is, with what mends it, before any reader of weights sees it.
"""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any, Literal

from ...runtime.command.strict_json import parse_json
from ...runtime.command.text import plain, shown
from ...runtime.errors import WeightsError

Form = Literal["safetensors", "zip", "pickle", "index"]

AGAIN = "fetch the file again"
_HEAD = 1024
_MOST_HEADER = 100_000_000  # of safetensors, its own limit
_MOST_JSON = 64 << 20  # of an index; one of 10,000 tensors has 1 MB
_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|body|!--|\?xml)", re.IGNORECASE)
_LFS = b"version https://git-lfs.github.com/spec/"
# How other formats begin, what they are, and what makes weights of them.
_OTHERS = (
    (b"\x1f\x8b", "compressed (gzip)", "unpack it first"),
    (b"BZh", "compressed (bzip2)", "unpack it first"),
    (b"\xfd7zXZ\x00", "compressed (xz)", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed (zstd)", "unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first"),
    (b"Rar!", "a RAR archive", "unpack it first"),
    (b"GGUF", "a GGUF file", "give the weights as safetensors or .pth"),
    (b"\x89HDF\r\n", "an HDF5 file", "give the weights as safetensors or .pth"),
    (b"\x93NUMPY", "a NumPy array", "give the weights as safetensors or .pth"),
)


def unreadable(path: Path, reason: str, remedy: str = AGAIN) -> WeightsError:
    """The error about a file that is no weights: `reason` completes "it ..."."""
    return WeightsError(f"cannot read weights {path}: it {reason}; {remedy}")


def form_of(path: Path) -> Form:
    """Return the form of a file of weights: `index` is one that names the files of shards.

    Raises:
        WeightsError: it is something else, is empty, or its end is missing.
        OSError: it cannot be opened.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(_HEAD)
    if not head:
        raise unreadable(path, "is empty")
    if head.startswith(_LFS):
        raise unreadable(
            path, "is a Git LFS pointer, not weights",
            "run git lfs pull where it was cloned, or download the file itself",
        )  # fmt: skip
    if _PAGE.match(head):
        raise unreadable(
            path, f"is a web page{_title(head)}, not weights",
            "the address asked for a sign-in or a confirmation: download the file itself",
        )  # fmt: skip
    if head.startswith(b"PK\x03\x04"):
        _check_zip(path)
        return "zip"
    if len(head) > 8 and head[8:9] == b"{" and 2 <= _header_size(head) <= _MOST_HEADER:
        _check_safetensors(path, _header_size(head), size)
        return "safetensors"
    if head.lstrip()[:1] in (b"{", b"["):
        return _check_index(path, size)
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "pickle"
    raise _stranger(path, head)


def _stranger(path: Path, head: bytes) -> WeightsError:
    for start, what, remedy in _OTHERS:
        if head.startswith(start):
            return unreadable(path, f"is {what}, not weights", remedy)
    if head[257:262] == b"ustar":
        return unreadable(path, "is a tar archive, not weights", "unpack it first")
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        text = "" if error.start < _HEAD - 4 else head[: error.start].decode()
    if text and all(letter.isprintable() or letter.isspace() for letter in text):
        return unreadable(path, f"is a text ({shown(' '.join(text.split()))}), not weights")
    return unreadable(path, "is neither safetensors nor a file of PyTorch, or is damaged")


def _title(head: bytes) -> str:
    found = re.search(rb"<title[^>]*>(.*?)<", head, re.IGNORECASE | re.DOTALL)
    text = plain(found[1].decode(errors="replace"), 60) if found else ""
    return f" ({text!r})" if text else ""


def _header_size(head: bytes) -> int:
    return int.from_bytes(head[:8], "little")


def _check_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise unreadable(path, "is truncated or damaged: its table of contents, at the end, is not "
                         "there") from error  # fmt: skip
    base = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in base:
        raise unreadable(path, "is a TorchScript program, not weights",
                         "save the state_dict() of the model with torch.save")  # fmt: skip
    if "data.pkl" not in base:
        held = ", ".join(shown(name, 30) for name in names[:3]) or "nothing"
        raise unreadable(path, f"is an archive of {held}, not weights", "unpack it first")


def _check_safetensors(path: Path, header: int, size: int) -> None:
    with path.open("rb") as stream:
        stream.seek(8)
        text = stream.read(header)
    if len(text) < header:
        raise unreadable(path, "is truncated: it ends within the header of safetensors")
    try:
        table: dict[str, Any] = json.loads(text)
        ends = [int(row["data_offsets"][1]) for name, row in table.items() if name[:2] != "__"]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise unreadable(path, "has a damaged header of safetensors") from error
    wanted = 8 + header + max(ends, default=0)
    if wanted > size:
        raise unreadable(path, f"is truncated: it has {size} of {wanted} bytes")


def _check_index(path: Path, size: int) -> Form:
    if size > _MOST_JSON:
        raise unreadable(path, "is a text, not weights")
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise unreadable(path, f"is a text, not weights ({plain(str(error), 80)})") from error
    if isinstance(content, dict) and "weight_map" in content:
        return "index"
    held = ", ".join(shown(str(key), 30) for key in list(content)[:4]) if content else ""
    raise unreadable(path, f"is a JSON document ({held}), not weights",
                     "give the file of the weights")  # fmt: skip
