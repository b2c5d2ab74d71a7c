from __future__ import annotations

import errno
import json

import numpy as np
import pytest
from PIL import Image

from csd.runtime.command.files import check_writable, write_atomically
from csd.runtime.images import grid, save_png, sheet, to_uint8

from ..helpers import leftovers


def test_pixels_are_clipped_and_rounded():
    values = np.array([-9, -1, -0.999, 0, 0.5, 1, 9], np.float32)
    images = to_uint8(np.tile(values, (2, 3, 1, 1)))
    assert images.shape == (2, 1, 7, 3)
    assert images.dtype == np.uint8
    assert images[1, 0, :, 2].tolist() == [0, 0, 0, 128, 191, 255, 255]


@pytest.mark.parametrize(
    ("count", "columns", "rows", "expected_columns"),
    [(1, None, 1, 1), (5, None, 2, 3), (5, 2, 3, 2), (3, 8, 1, 3), (3, 2**31 - 1, 1, 3)],
)
def test_a_grid_shows_every_image_once_on_white(count, columns, rows, expected_columns):
    images = np.zeros((count, 4, 6, 3), np.uint8)
    images += np.arange(count, dtype=np.uint8)[:, None, None, None]
    out = grid(images, columns, gap=2)
    assert out.shape == (rows * 6 + 2, expected_columns * 8 + 2, 3)
    for index in range(count):
        top, left = 2 + index // expected_columns * 6, 2 + index % expected_columns * 8
        assert (out[top : top + 4, left : left + 6] == index).all()
    assert (out == 255).sum() == out.size - images.size


def test_a_png_holds_the_pixels_enlarged(tmp_path):
    image = np.random.default_rng(0).integers(256, size=(3, 5, 3), dtype=np.uint8)
    save_png(tmp_path / "x.png", image, scale=2)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "x.png"))[::2, ::2], image)
    assert leftovers(tmp_path) == ["x.png"]


def test_one_image_is_a_sheet_as_it_is():
    image = np.random.default_rng(0).integers(256, size=(1, 5, 9, 3), dtype=np.uint8)
    np.testing.assert_array_equal(sheet(image), image[0])
    np.testing.assert_array_equal(sheet(image, 7), image[0])


def test_small_images_of_a_grid_are_enlarged_and_large_ones_are_not():
    small, large = np.zeros((2, 28, 20, 3), np.uint8), np.zeros((2, 300, 256, 3), np.uint8)
    assert sheet(small).shape == (4 * 28 + 2 * 8, 2 * 4 * 20 + 3 * 8, 3)
    np.testing.assert_array_equal(sheet(small)[::4, ::4], grid(small))
    assert sheet(large).shape == (304, 2 * 256 + 3 * 2, 3)


def test_captions_stand_under_their_images():
    images = np.full((2, 30, 60, 3), 200, np.uint8)
    plain, captioned = sheet(images), sheet(images, captions=["bag", "a" * 99])
    assert captioned.shape[0] == plain.shape[0] + 14
    written = sheet(images[:1], captions=["bag"])
    np.testing.assert_array_equal(written[:30], images[0])
    assert (written[30:] < 128).any()
    # Wider than a small image where its name is, and bounded.
    narrow = sheet(np.zeros((1, 8, 8, 3), np.uint8), captions=["ankle-boot"])
    assert 8 < narrow.shape[1] < 100
    assert sheet(np.zeros((1, 8, 8, 3), np.uint8), captions=["x" * 500]).shape[1] == 160
    sheet(images, captions=["靴", ""])  # letters that the font has not


def test_a_png_says_how_it_was_made(tmp_path):
    made = {"seed": 3, "options": {"mode": "target"}, "name": "ü, 靴"}
    save_png(tmp_path / "x.png", np.zeros((2, 2, 3), np.uint8), metadata=made)
    with Image.open(tmp_path / "x.png") as image:
        assert json.loads(image.text["csd"]) == made


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")

    def fail(path):
        with write_atomically(path) as stream:
            stream.write(b"new")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail(path)
    assert path.read_bytes() == b"old"
    assert leftovers(tmp_path) == ["x"]


def test_a_write_that_ends_replaces_the_file(tmp_path):
    (tmp_path / "x").write_bytes(b"old")
    with write_atomically(tmp_path / "x") as stream:
        stream.write(b"new")
        assert (tmp_path / "x").read_bytes() == b"old"
    assert (tmp_path / "x").read_bytes() == b"new"
    assert leftovers(tmp_path) == ["x"]


def test_the_check_for_a_writable_place_changes_nothing(tmp_path):
    (tmp_path / "x").write_bytes(b"old")
    check_writable(tmp_path / "x")
    check_writable(tmp_path / "y")
    assert leftovers(tmp_path) == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"
    for path in (tmp_path / "gone" / "x", tmp_path / "x" / "y", tmp_path):
        with pytest.raises(OSError, match=r"."):
            check_writable(path)


def test_errors_name_the_file_that_was_asked_for(tmp_path):
    path = tmp_path / "gone" / "x.json"
    with pytest.raises(FileNotFoundError) as error:
        check_writable(path)
    assert error.value.filename == str(path)
    with pytest.raises(FileNotFoundError) as error, write_atomically(path):
        pass
    assert error.value.filename == str(path)
