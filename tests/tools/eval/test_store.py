from __future__ import annotations

import sqlite3
import subprocess
import threading

import numpy as np
import pytest

from csd.runtime import CsdError, OptionError
from csd.tools.eval.store import database, schema
from csd.tools.eval.store.database import StoreError, check_database, open_database, transaction
from csd.tools.eval.store.runs import (
    Batch,
    Settings,
    add_batch,
    add_run,
    batches_of,
    images_of,
    labels_of,
    need_run,
    numbers_of,
)
from csd.tools.png import decode_png, encode_png

SETTINGS = Settings("b", "0" * 64, {"cfg": 1.0, "head_steps": [5, 2]}, 0, 4, 10, (6, 5), "cpu",
                    None, {"csd": "1"})  # fmt: skip


def random_images(count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 6, 5, 3), dtype=np.uint8)


def test_what_is_stored_comes_back(tmp_path):
    images, labels = random_images(3), [1, 2, 0]
    with open_database(tmp_path / "x", create=True) as db:
        run = add_run(db, "one", SETTINGS, {"threads": 2})
        add_batch(db, run, Batch(4, 3, 0.5, None, {"a": [1]}), images, labels)
    with open_database(tmp_path / "x") as db:
        run = need_run(db, "one")
        assert (run.settings, run.about) == (SETTINGS, {"threads": 2})
        assert numbers_of(db, run) == [4, 5, 6]
        assert labels_of(db, run, [6, 4]) == [0, 1]
        np.testing.assert_array_equal(images_of(db, run, [6, 4]), images[[2, 0]])
        assert batches_of(db, run) == [Batch(4, 3, 0.5, None, {"a": [1]})]
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_grey_images_are_stored_in_grey_and_come_back_in_colour():
    image = random_images(1)[0]
    grey = np.repeat(image[..., :1], 3, axis=-1)
    np.testing.assert_array_equal(decode_png(encode_png(image)), image)
    np.testing.assert_array_equal(decode_png(encode_png(grey)), grey)
    assert len(encode_png(grey)) < len(encode_png(image))


def test_a_run_keeps_its_settings(tmp_path):
    other = Settings(**{**SETTINGS.__dict__, "options": {"cfg": 3.0, "head_steps": [5, 2]}})
    with open_database(tmp_path / "x", create=True) as db:
        first = add_run(db, "one", SETTINGS, {})
        assert add_run(db, "one", SETTINGS, {"later": True}) == first
        with pytest.raises(OptionError, match=r"other settings \(cfg 3.0, was 1.0\)"):
            add_run(db, "one", other, {})
        with pytest.raises(OptionError, match="no run 'two' in the database: give one of one"):
            need_run(db, "two")


def delete_and_fail(db):
    with transaction(db):
        db.execute("DELETE FROM runs")
        raise RuntimeError


def test_a_batch_is_stored_whole_or_not_at_all(tmp_path):
    with open_database(tmp_path / "x", create=True) as db:
        run = add_run(db, "one", SETTINGS, {})
        with pytest.raises(ValueError, match="shorter"):
            add_batch(db, run, Batch(0, 3, 0.5, None, {}), random_images(3), [1])
        with pytest.raises(RuntimeError):
            delete_and_fail(db)
        assert numbers_of(db, run) == []
        assert batches_of(db, run) == []
        assert need_run(db, "one") == run


def test_a_second_process_repeats_nothing(tmp_path):
    with open_database(tmp_path / "x", create=True) as db:
        run = add_run(db, "one", SETTINGS, {})
        for seconds in (0.5, 9.0):
            add_batch(db, run, Batch(0, 3, seconds, None, {}), random_images(3), [0, 1, 2])
        assert [batch.seconds for batch in batches_of(db, run)] == [0.5]


def opened(path):
    with open_database(path) as db:
        return db.execute("SELECT count(*) FROM runs").fetchone()[0]


def test_no_database_is_made_where_one_is_read(tmp_path):
    with pytest.raises(StoreError, match=r"no database at .*: make one with csd-eval run"):
        opened(tmp_path / "gone")
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize("content", [b"hello\n" * 200, b"SQLite format 3\0" + bytes(5000)])
def test_a_file_that_is_no_database_is_left_as_it_is(content, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"database .*: it is damaged"):
        opened(path)
    assert path.read_bytes() == content


def test_another_programs_database_is_left_as_it_is(tmp_path):
    with sqlite3.connect(tmp_path / "x") as db:
        db.execute("CREATE TABLE runs (a)")
    db.close()
    before = (tmp_path / "x").read_bytes()
    with pytest.raises(StoreError, match="another program's database"):
        opened(tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == before


def test_a_newer_database_is_not_read(tmp_path):
    with open_database(tmp_path / "x", create=True) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="version 99, this csd reads up to 1: upgrade csd"):
        opened(tmp_path / "x")


def test_an_older_database_is_brought_up_to_date(tmp_path, monkeypatch):
    with open_database(tmp_path / "x", create=True) as db:
        add_run(db, "one", SETTINGS, {})
    later = (*schema.MIGRATIONS, "ALTER TABLE runs ADD COLUMN note TEXT DEFAULT 'old';")
    for module in (schema, database):
        monkeypatch.setattr(module, "MIGRATIONS", later)
    for _ in range(2):
        with open_database(tmp_path / "x") as db:
            assert db.execute("SELECT name, note FROM runs").fetchall() == [("one", "old")]
            assert schema.version_of(db) == len(later)


def test_a_migration_that_fails_changes_nothing(tmp_path, monkeypatch):
    with open_database(tmp_path / "x", create=True) as db:
        add_run(db, "one", SETTINGS, {})
    broken = (*schema.MIGRATIONS, "DELETE FROM runs; CREATE TABLE runs (a);")
    with monkeypatch.context() as patch:
        for module in (schema, database):
            patch.setattr(module, "MIGRATIONS", broken)
        with pytest.raises(StoreError, match="already exists"):
            opened(tmp_path / "x")
    assert opened(tmp_path / "x") == 1


def test_a_locked_database_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "LOCK_SECONDS", 0.05)
    held, done = threading.Event(), threading.Event()

    def hold():
        with open_database(tmp_path / "x", create=True) as db, transaction(db):
            held.set()
            done.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert held.wait(20)
        with (
            pytest.raises(StoreError, match="another process holds it: wait"),
            open_database(tmp_path / "x") as db,
        ):
            add_run(db, "one", SETTINGS, {})
    finally:
        done.set()
        holder.join()


def fill_up(path, run):
    with open_database(path) as db:
        for first in range(1, 1000, 20):
            batch = Batch(first, 20, 0.5, None, {})
            add_batch(db, run, batch, random_images(20, first), [0] * 20)


def test_a_full_disk_loses_nothing(small_disk):
    def resize(size):
        subprocess.run(["mount", "-o", f"remount,size={size}", str(small_disk)], check=True)

    path = small_disk / "x"
    resize("400k")
    with open_database(path, create=True) as db:
        run = add_run(db, "one", SETTINGS, {})
        add_batch(db, run, Batch(0, 1, 0.5, None, {}), random_images(1), [0])
    with pytest.raises(StoreError, match="the disk is full"):
        fill_up(path, run)
    resize("4m")
    with open_database(path) as db:
        numbers = numbers_of(db, run)
        assert len(numbers) % 20 == 1
        assert len(batches_of(db, run)) == len(numbers) // 20 + 1
        np.testing.assert_array_equal(images_of(db, run, [0]), random_images(1))


def test_damage_inside_is_told(tmp_path):
    with open_database(tmp_path / "x", create=True) as db:
        run = add_run(db, "one", SETTINGS, {})
        add_batch(db, run, Batch(0, 2, 0.5, None, {}), random_images(2), [0, 1])
        small = encode_png(np.zeros((2, 2, 3), dtype=np.uint8))
        db.execute("UPDATE images SET png = ? WHERE number = 0", (b"\x89PNG",))
        db.execute("UPDATE images SET png = ? WHERE number = 1", (small,))
        for number, message in ((0, "is damaged"), (1, "is 2 x 2, the run's are 5 x 6"),
                                (7, "has no image 7")):  # fmt: skip
            with pytest.raises(StoreError, match=message):
                images_of(db, run, [number])
        db.execute("UPDATE runs SET settings = '{}'")
        with pytest.raises(StoreError, match="settings that cannot be read"):
            need_run(db, "one")


@pytest.mark.parametrize("name", ["-", "/dev/null", "folder", "gone/x"])
def test_where_no_database_can_be_is_refused_before_any_work(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    from pathlib import Path

    with pytest.raises((CsdError, OSError)):
        check_database(Path(name))
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
