"""Which classes to generate: by index, or by the names that a bundle gives its classes."""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Sequence

import numpy as np

from .arguments import wrong_type
from .arrays import Int64
from .command.text import shown
from .errors import OptionError

ALL = "all"
UNCONDITIONAL = "unconditional"
# More names than these make no readable message.
_MOST_NAMES = 16
_LONGEST_NUMBER = 9


def resolve_labels(labels: object, classes: int, names: Sequence[str] | None) -> Int64:
    """Return class indices `[B]`.

    Args:
        labels: a sequence of indices, 0 to `classes` (which is unconditional), and of names.
        classes: number of classes.
        names: of the classes, or None where they have none.

    Raises:
        OptionError: it is no such sequence, is empty, or an entry is out of range or not known.
    """
    wanted = "a list of class indices or names"
    if isinstance(labels, str | bytes) or not isinstance(labels, Sequence | np.ndarray):
        raise wrong_type("labels", labels, wanted)
    if isinstance(labels, np.ndarray) and labels.ndim != 1:
        raise OptionError(f"labels is an array of shape {labels.shape}: give {wanted}")
    if len(labels) == 0:
        raise OptionError(f"labels is empty: give {wanted}")
    index = {name: number for number, name in enumerate(names or ())}
    resolved = [_resolve(label, classes, index) for label in labels]
    return np.array(resolved, dtype=np.int64)


def _resolve(label: object, classes: int, index: dict[str, int]) -> int:
    if isinstance(label, str):
        if label not in index:
            raise OptionError(_unknown(label, classes, index))
        return index[label]
    if isinstance(label, bool) or not isinstance(label, numbers.Integral):
        raise wrong_type("label", label, f"a class index, {_range(classes)}, or a name")
    index_given = int(label)
    if not 0 <= index_given <= classes:
        raise OptionError(f"label {shown(label)} is out of range: give {_range(classes)}")
    return index_given


def _range(classes: int) -> str:
    return f"0 to {classes - 1} ({classes} for an unconditional image)"


def _unknown(label: str, classes: int, index: dict[str, int]) -> str:
    folded = {name.casefold(): name for name in index}
    near = difflib.get_close_matches(label.casefold(), folded, n=1)
    known = f" (did you mean {folded[near[0]]!r}?)" if near else ""
    names = ""
    if index:
        first = [*index][:_MOST_NAMES]
        more = f" and {len(index) - len(first)} more names" if len(index) > len(first) else ""
        names = f" or one of {', '.join(first)}{more}"
    return f"label {shown(label)} is not known{known}: give {_range(classes)}{names}"


def read_labels(text: str, classes: int, names: Sequence[str] | None) -> list[int]:
    """Read indices and names with commas between, or `all` for every class once.

    Raises:
        OptionError: an entry is neither, or is out of range.
    """
    known = names or ()
    entries = [entry.strip() for entry in text.split(",")]
    if entries == [ALL] and ALL not in known:
        return list(range(classes))
    labels = [int(entry) if _is_index(entry) and entry not in known else entry for entry in entries]
    return resolve_labels(labels, classes, names).tolist()


def _is_index(entry: str) -> bool:
    return entry.isdecimal() and len(entry) <= _LONGEST_NUMBER


def class_name(label: int, names: Sequence[str] | None) -> str:
    """What to call a class: its name, else its index; `unconditional` for the one after the last.

    Args:
        label: the index.
        names: of the classes; without them only an index can be given.
    """
    if names is None:
        return str(label)
    return names[label] if label < len(names) else UNCONDITIONAL
