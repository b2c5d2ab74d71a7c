from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from csd.runtime import Bundle, CsdError, NumericsError
from csd.tools.quality import ImageClassifier, as_shown, balanced_labels, bundle_classifier


def classifier_by_brightness(path):
    """An ONNX classifier of images 1 x 4 x 4: class 1 if the mean is above 0, else class 0."""
    weights = np.stack([-np.ones(16), np.ones(16)], axis=1).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["flat"]),
            helper.make_node("MatMul", ["flat", "w"], ["logits"]),
        ],
        "brightness",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(weights, "w")],
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)


def test_accuracy_is_the_share_of_images_given_their_label(tmp_path):
    classifier_by_brightness(tmp_path / "c.onnx")
    classifier = ImageClassifier(tmp_path / "c.onnx", threads=1)
    images = np.array([1.0, -1.0, 1.0, 1.0], np.float32)[:, None, None, None] * np.ones(
        (1, 1, 4, 4)
    )
    images = images.astype(np.float32)
    assert classifier.accuracy(images, [1, 0, 1, 1]) == 1.0
    assert classifier.accuracy(images, [1, 0, 0, 1]) == 0.75
    with pytest.raises(CsdError, match="cannot load"):
        ImageClassifier(tmp_path / "gone.onnx", threads=1)


def test_images_are_judged_as_a_viewer_sees_them():
    latents = np.array([-3.0, -1.0, 0.0, 0.4999, 3.0], np.float32).reshape(1, 1, 1, 5)
    shown = as_shown(latents)
    np.testing.assert_allclose(shown.reshape(-1), [-1, -1, 1 / 255, 127 / 255, 1], atol=1e-6)


def test_labels_are_balanced():
    assert balanced_labels(7, 3) == [0, 1, 2, 0, 1, 2, 0]


def test_a_bundle_that_is_not_of_the_zoo_has_no_classifier(tiny_bundle):
    assert bundle_classifier(Bundle.open(tiny_bundle), threads=1) is None


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_images_that_are_not_finite_are_not_taken_for_the_first_class(value, tmp_path):
    classifier_by_brightness(tmp_path / "c.onnx")
    images = np.full((1, 1, 4, 4), value, dtype=np.float32)
    with pytest.raises(NumericsError, match="the classifier returned values that are not finite"):
        ImageClassifier(tmp_path / "c.onnx", threads=1).accuracy(images, [0])
