"""Names of classes: built in, or from a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from csd.export.class_names import class_names, read_class_names
from csd.models.class_names import imagenet_names
from csd.runtime.errors import ExportError
from csd.runtime.labels import read_labels


def test_imagenet_has_a_thousand_names_that_labels_can_take():
    names = imagenet_names()
    assert len({name.casefold() for name in names}) == len(names) == 1000
    assert (names[0], names[1], names[207], names[980]) == (
        "tench", "goldfish", "golden retriever", "volcano",
    )  # fmt: skip
    assert read_labels(",".join(names), 1000, names) == list(range(1000))


def test_a_model_of_a_thousand_classes_is_named_and_that_is_said():
    said = []
    assert class_names(None, 1000, said.append) == imagenet_names()
    assert len(said) == 1
    assert "--class-names FILE" in said[0]
    assert class_names(Path("none"), 1000, said.append) is None
    assert class_names(None, 10, said.append) is None
    assert len(said) == 1


@pytest.mark.parametrize(
    "content",
    ["a\n\n  b c \r\n\u00e9\n", '["a", "b c", "\u00e9"]', '{"2": "\u00e9", "0": "a", "1": "b c"}',
     "\ufeffa\nb c\n\u00e9"],
)  # fmt: skip
def test_every_form_is_read(tmp_path, content):
    path = tmp_path / "names"
    path.write_text(content, encoding="utf-8")
    assert read_class_names(path, 3) == ("a", "b c", "\u00e9")
    assert class_names(path, 3, print) == ("a", "b c", "\u00e9")


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"a\nb\n", "names 2 classes, the model has 3: give a name for each"),
        (b"a\nb\na\n", "gives classes 0 and 2 one name, 'a': give two"),
        (b"a\nb,c\nd\n", "'b,c' is no name that --labels can take"),
        (b"a\nb\x1b[31m\nd\n", "printable characters: give another name"),
        (b'["a", 1, "c"]', "1 is no name"),
        (b'["a", "", "c"]', "printable characters: give another name"),
        (b'["a", " b", "c"]', "' b' is no name that --labels can take"),
        (b'{"0": "a", "2": "b", "3": "c"}', "its indices are not 0, 1, 2"),
        (b'{"zero": "a"}', "cannot read class names"),
        (b"[1, 2", "cannot read class names"),
        (b"\xff\xfe", "cannot read class names"),
        (json.dumps({"0": ["a"]}).encode(), "['a'] is no name"),
    ],
)
def test_what_names_no_classes_is_one_line(tmp_path, content, wanted):
    path = tmp_path / "names"
    path.write_bytes(content)
    with pytest.raises(ExportError) as error:
        read_class_names(path, 3)
    assert wanted in str(error.value)
    assert "\n" not in str(error.value)
    assert str(error.value).isprintable()


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ExportError, match=r"cannot read class names: No such file .*gone"):
        read_class_names(tmp_path / "gone", 3)
