from __future__ import annotations

import numpy as np
import pytest

from csd.runtime import OptionError
from csd.runtime.labels import class_name, read_labels, resolve_labels

NAMES = ["t-shirt", "Ankle boot", "bag", "3"]


def test_indices_and_names_may_be_mixed():
    labels = ["bag", 3, np.int64(4), np.str_("Ankle boot"), np.uint8(0)]
    resolved = resolve_labels(labels, 4, NAMES)
    assert resolved.tolist() == [2, 3, 4, 1, 0]
    assert resolved.dtype == np.int64
    assert resolve_labels(np.array([1, 2], np.int8), 4, None).tolist() == [1, 2]
    assert resolve_labels(np.array(["bag"]), 4, NAMES).tolist() == [2]
    assert resolve_labels(range(4), 4, NAMES).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ("bag", "labels is 'bag' (str): give a list of class indices or names"),
        (3, "labels is 3 (int)"), (None, "labels is None"), ({"bag": 1}, "labels is {'bag': 1}"),
        (np.ones((2, 2), int), "labels is an array of shape (2, 2)"), ([], "labels is empty"),
        (np.array(3), "labels is an array of shape ()"),
        ([1.0], "label is 1.0 (float)"), ([True], "label is True (bool)"), ([[1]], "label is [1]"),
        ([None], "label is None"), (np.ones(2), "label is"), ([-1], "label -1 is out of range"),
        ([5], "label 5 is out of range: give 0 to 3 (4 for an unconditional image)"),
        ([10**99], "is out of range"),
        (["bga"], "label 'bga' is not known (did you mean 'bag'?): give 0 to 3"),
        (["ANKLE-BOOT"], "did you mean 'Ankle boot'?"), (["zzz"], "label 'zzz' is not known: give"),
    ],
)  # fmt: skip
def test_what_is_no_label_is_refused_with_what_was_meant(labels, said):
    with pytest.raises(OptionError) as error:
        resolve_labels(labels, 4, NAMES)
    assert said in str(error.value)
    assert len(str(error.value)) < 250


def test_a_thousand_names_do_not_fill_the_message():
    names = [f"class number {k}" for k in range(1000)]
    with pytest.raises(OptionError, match="and 984 more names") as error:
        resolve_labels(["class nmber 500"], 1000, names)
    assert "did you mean 'class number" in str(error.value)
    assert len(str(error.value)) < 500


def test_the_command_line_reads_the_same_labels():
    assert read_labels("bag, 1,4,t-shirt", 4, NAMES) == [2, 1, 4, 0]
    assert read_labels("3", 4, NAMES) == [3]  # the name, which is also the index
    assert read_labels("all", 4, NAMES) == [0, 1, 2, 3]
    assert read_labels("all", 2, ["all", "none"]) == [0]
    for text in ("", "1,,2", "9" * 5000, "²", "-1", "1.0", "all,1"):
        with pytest.raises(OptionError, match=r"^label "):
            read_labels(text, 4, NAMES)


def test_classes_are_called_by_name_or_index():
    assert [class_name(k, NAMES) for k in (0, 4)] == ["t-shirt", "unconditional"]
    assert class_name(4, None) == "4"
