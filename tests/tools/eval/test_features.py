from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from csd.runtime import CsdError, NumericsError, OptionError
from csd.tools.eval.images.generate import Features
from csd.tools.eval.images.real import RealError, balanced, find_real, framed, read_features
from csd.tools.eval.metrics.features import FeatureError, FeatureSpace
from csd.tools.eval.options import find_features
from csd.tools.eval.store.database import StoreError, open_database
from csd.tools.eval.store.features import features_of, fill_features, find_space
from csd.tools.eval.store.runs import need_run


def write_graph(path, channels=3, side=8, width=6, batch="N", logits=True, dtype=TensorProto.FLOAT):
    """Features are a random projection, logits another one; returns the first's matrix."""
    rng = np.random.default_rng(width)
    size = channels * side * side
    matrices = {"w": rng.normal(size=(size, width)), "u": rng.normal(size=(size, 10))}
    nodes = [helper.make_node("Flatten", ["image"], ["flat"]),
             helper.make_node("MatMul", ["flat", "w"], ["features"])]  # fmt: skip
    outputs = [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", width])]
    if logits:
        nodes.append(helper.make_node("MatMul", ["flat", "u"], ["logits"]))
        outputs.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10]))
    graph = helper.make_graph(
        nodes, "features",
        [helper.make_tensor_value_info("image", dtype, [batch, channels, side, side])], outputs,
        [numpy_helper.from_array(m.astype(np.float32), n) for n, m in matrices.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)],
                                ir_version=9), path)  # fmt: skip
    return matrices["w"].astype(np.float32)


IMAGES = np.random.default_rng(0).integers(0, 256, (70, 8, 8, 3), dtype=np.uint8)


def test_images_reach_the_graph_as_its_settings_say(tmp_path):
    path, matrix = tmp_path / "g.onnx", write_graph(tmp_path / "g.onnx")
    plain = FeatureSpace.at(path)
    wanted = (IMAGES.transpose(0, 3, 1, 2) / 127.5 - 1).reshape(70, -1) @ matrix
    found = plain.loaded(1)(IMAGES)
    np.testing.assert_allclose(found.features, wanted, atol=1e-4)
    assert found.logits.shape == (70, 10)
    settings = {"range": [0, 1], "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "logits": None}
    (tmp_path / "g.json").write_text(json.dumps(settings), encoding="utf-8")
    other = FeatureSpace.at(path)
    scaled = (IMAGES / 255 - settings["mean"]) / settings["std"]
    wanted = scaled.transpose(0, 3, 1, 2).reshape(70, -1) @ matrix
    np.testing.assert_allclose(other.loaded(1)(IMAGES).features, wanted, atol=1e-3)
    assert other.sha256 != plain.sha256


def test_a_grey_graph_takes_grey_images_exactly_and_others_are_resized(tmp_path):
    write_graph(tmp_path / "g.onnx", channels=1)
    space = FeatureSpace.at(tmp_path / "g.onnx")
    grey = np.repeat(IMAGES[..., :1], 3, axis=-1)
    prepared = space.prepare(grey)
    np.testing.assert_array_equal(
        prepared[:, 0], grey[..., 0].astype(np.float32) * np.float32(2 / 255) - 1
    )
    even = np.full((2, 16, 12, 3), 255, dtype=np.uint8)
    np.testing.assert_allclose(space.prepare(even), np.ones((2, 1, 8, 8)), atol=1e-6)


BAD_SETTINGS = {
    "[]": "it is", '{"size": [8]}': "size is [8]", '{"wat": 1}': "a name in it is 'wat'",
    '{"features": "gone"}': "has no output 'gone', which g.json names",
    '{"mean": [1, 2]}': "mean has 2 values, the graph takes 3 channels",
    '{"std": [0]}': "std[0] is 0", "{": "is not what describes", '{"range": [0, NaN]}': "NaN",
}  # fmt: skip


@pytest.mark.parametrize("text", BAD_SETTINGS)
def test_settings_that_are_wrong_are_told(text, tmp_path):
    write_graph(tmp_path / "g.onnx")
    (tmp_path / "g.json").write_text(text, encoding="utf-8")
    with pytest.raises(FeatureError) as error:
        FeatureSpace.at(tmp_path / "g.onnx")
    assert BAD_SETTINGS[text] in str(error.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"channels": 4}, "takes image float32 .*: give a graph that takes"),
        ({"batch": 2}, "takes 2 images at a time"),
        ({"side": "H"}, 'give "size" in g.json'),
        ({"dtype": TensorProto.DOUBLE}, "takes image"),
    ],
)
def test_graphs_that_take_no_images_are_told(given, message, tmp_path):
    path = tmp_path / "g.onnx"
    if given.get("side") == "H":
        write_graph(path)
        model = onnx.load(path)
        for at in (2, 3):
            model.graph.input[0].type.tensor_type.shape.dim[at].dim_param = f"H{at}"
        onnx.save(model, path)
    else:
        write_graph(path, **given)
    with pytest.raises(FeatureError, match=message):
        FeatureSpace.at(path)


def test_features_that_are_not_finite_are_told(tmp_path):
    write_graph(tmp_path / "g.onnx")
    (tmp_path / "g.json").write_text('{"range": [-1e6, 1e6], "std": [1e-6]}', encoding="utf-8")
    space = FeatureSpace.at(tmp_path / "g.onnx")
    model = onnx.load(tmp_path / "g.onnx")
    bad = numpy_helper.from_array(np.full((192, 6), np.inf, np.float32), "w")
    model.graph.initializer[0].CopyFrom(bad)
    onnx.save(model, tmp_path / "g.onnx")
    with pytest.raises(NumericsError, match="values that are not finite"):
        space.loaded(1)(IMAGES)


def graph_of(path, title="g", **given):
    write_graph(path, side=16, **given)
    return Features(FeatureSpace.at(path, title), FeatureSpace.at(path).loaded(1))


def test_features_of_a_run_are_stored_once(evaluated, tmp_path):
    path, features = evaluated("a", images=7), graph_of(tmp_path / "g.onnx")
    calls = []

    def extract(images):
        calls.append(len(images))
        return features.extract(images)

    for images, called in ((7, [7]), (7, [7]), (12, [7, 5])):
        evaluated("a", images=images)
        with open_database(path) as db:
            run = need_run(db, "a")
            fill_features(db, run, features.space, extract)
            assert calls == called
            space = find_space(db, features.space.sha256)
            found = features_of(db, run, space, range(images))
            assert found.features.shape == (images, 6)
    with open_database(path) as db:
        db.execute("UPDATE features SET features = ? WHERE number = 3", (b"abcd",))
        with pytest.raises(StoreError, match="have 1 values, the space has 6"):
            features_of(db, need_run(db, "a"), space, [3])
        with pytest.raises(StoreError, match="has no features"):
            features_of(db, need_run(db, "a"), space, [99])


def test_a_run_keeps_the_features_that_it_is_given(evaluated, tmp_path):
    graph_of(tmp_path / "g.onnx")
    path = evaluated("a", f"--features={tmp_path / 'g.onnx'}", images=7)
    with open_database(path) as db:
        space = find_space(db, FeatureSpace.at(tmp_path / "g.onnx").sha256)
        assert space is not None
        assert features_of(db, need_run(db, "a"), space, range(7)).logits.shape == (7, 10)


def test_features_of_another_length_under_one_name_are_refused(evaluated, tmp_path):
    path, features = evaluated("a", images=2), graph_of(tmp_path / "g.onnx")
    with open_database(path) as db:
        fill_features(db, need_run(db, "a"), features.space, features.extract)
        db.execute("DELETE FROM features")
        db.execute("UPDATE spaces SET width = 5")
        with pytest.raises(OptionError, match=r"gives 6 features .*, those in the database have 5"):
            fill_features(db, need_run(db, "a"), features.space, features.extract)


def archive(path, count=60, side=16, **changed):
    rng = np.random.default_rng(side)
    values = {
        f"{split}_{name}": value
        for split in ("train", "test")
        for name, value in (
            ("images", rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)),
            ("labels", np.arange(count) % 10),
        )
    }
    np.savez(path, **{**values, **changed})
    return path


def test_real_images_are_seen_once(tmp_path):
    real = find_real(str(archive(tmp_path / "r.npz", side=12)), None)
    features, calls = graph_of(tmp_path / "g.onnx"), []

    def extract(images):
        calls.append(images)
        return features.extract(images)

    watched = Features(features.space, extract)
    with open_database(tmp_path / "x", create=True) as db:
        first, second = (read_features(db, real, watched, "train", 43, (16, 16)) for _ in range(2))
        assert [len(images) for images in calls] == [40]
        np.testing.assert_array_equal(first.outputs.features, second.outputs.features)
        np.testing.assert_array_equal(first.labels, np.sort(first.labels) * 0 + first.labels)
        assert np.bincount(second.labels).tolist() == [4] * 10
        assert (calls[0][:, :2] == 0).all()
        with pytest.raises(RealError, match=r"are 12 x 12, generated ones 8 x 8"):
            read_features(db, real, watched, "test", 40, (8, 8))


def test_frames_and_balance():
    images = np.ones((2, 4, 4), dtype=np.uint8)
    assert framed(images, (6, 8)).sum() == 2 * 16 * 3
    with pytest.raises(RealError):
        framed(images, (5, 4))
    labels = np.array([0, 0, 0, 2, 2, 1, 1, 1])
    np.testing.assert_array_equal(balanced(labels, 100), [0, 1, 3, 4, 5, 6])
    np.testing.assert_array_equal(balanced(labels, 3), [0, 3, 5])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"test_images": np.zeros((3, 4, 4))}, "has images float64"),
        ({"test_labels": np.zeros(3, int)}, "a class for each"),
        ({"test_labels": np.full(60, -1)}, "a class for each"),
    ],
)
def test_real_images_that_are_none_are_told(given, message, tmp_path):
    with pytest.raises(CsdError, match=message):
        find_real(str(archive(tmp_path / "r.npz", **given)), None)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04" + bytes(50), None])
def test_files_of_real_images_that_are_none_are_told(content, tmp_path):
    path = tmp_path / "r.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RealError):
        find_real(str(path), None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RealError, match="IDX files"):
        find_real(str(tmp_path / "empty"), None)


def test_who_has_no_real_images_says_so():
    assert find_real("none", "fashion-mnist") is None
    assert find_real(None, None) is None
    assert find_features([], None, 1) == []
