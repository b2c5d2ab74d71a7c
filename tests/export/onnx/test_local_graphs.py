"""Graphs of full and local AR steps: parity, shared weights, and what a bundle with them holds."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from csd.export.cli import main
from csd.export.onnx.graphs import model_graphs
from csd.export.onnx.parity import check_parity, references
from csd.export.onnx.to_onnx import export_onnx
from csd.export.onnx.weights import Place, SharedWeights, WeightsFile
from csd.models import load_mar
from csd.models.families import load_config
from csd.runtime import Bundle
from csd.runtime.backends import OnnxLoader
from csd.runtime.bundle.graph_tensors import LOCAL_GRAPHS
from csd.runtime.bundle.manifest import SCHEMA_VERSION

from ...helpers import DATA, failure

PRECISIONS = ("fp32", "fp16", "int8")


@pytest.fixture(scope="module")
def manifest(local_bundle):
    return Bundle.open(local_bundle).manifest


def test_every_graph_is_as_pytorch_in_every_precision(manifest):
    rows = {row.graph: row for row in manifest.parity}
    for role in ("target", "draft"):
        for kind in LOCAL_GRAPHS:
            for precision in PRECISIONS:
                name = f"{role}.{kind}" + ("" if precision == "fp32" else f" [{precision}]")
                row = rows[name]
                print(f"{name}: {row.max_abs:.1e}, {row.max_rel:.1e} of the largest")
                assert row.passed
                assert row.shapes == 4


def test_the_graphs_take_indices_and_all_sizes(manifest, local_bundle):
    for kind, dims in (("backbone_full", "BVP"), ("backbone_local", "BVPN")):
        spec = manifest.graphs[f"target.{kind}"]
        assert set(spec.profile) == set(dims)
        model = onnx.load(local_bundle / spec.onnx_file, load_external_data=False)
        assert not {node.op_type for node in model.graph.node} & {"NonZero", "Compress", "Where"}
    assert manifest.graphs["target.backbone_local"].profile["N"][2] == manifest.target.seq_len
    assert manifest.schema_version == SCHEMA_VERSION >= 4


def test_weights_are_in_one_file_for_all_three_backbones(manifest, local_bundle):
    for precision, table in manifest.tables.items():
        files = {kind: list(table[f"target.{kind}"].files) for kind in ("backbone", *LOCAL_GRAPHS)}
        _, weights = files["backbone"]
        suffix = "" if precision == "fp32" else f".{precision}"
        assert weights == f"target_backbone{suffix}.onnx.data"
        for kind in LOCAL_GRAPHS:
            own, *others = files[kind]
            assert own == f"target_{kind}{suffix}.onnx"
            assert weights in others
            extra = [name for name in others if name != weights]
            small = sum((local_bundle / name).stat().st_size for name in extra)
            assert small < 0.02 * (local_bundle / weights).stat().st_size


def test_no_file_lies_about_that_no_graph_names(manifest, local_bundle):
    there = {path.name for path in local_bundle.iterdir()} - {"manifest.json"}
    assert there == set(manifest.file_hashes)


@pytest.mark.parametrize("family", ["emigm", "mar_one_token"])
def test_other_families_have_the_graphs_too(family, tmp_path):
    folder = DATA / family
    model = load_mar(folder / "weights.pth", load_config(folder / "config.json"))
    shared: SharedWeights = {}
    for graph in model_graphs("target", model, local_steps=True)[1:3]:
        files = export_onnx(graph, tmp_path / f"{graph.name}.onnx", shared)
        loaded = OnnxLoader(1).load(files[0])
        row = check_parity(references(graph, ())["fp32"], loaded)
        print(f"{family} {row.graph}: {row.max_abs:.1e}")
        assert row.passed


def test_a_slim_bundle_keeps_them(local_bundle, tmp_path):
    out = tmp_path / "slim"
    argv = ["--slim", str(local_bundle), "--for", "int8,cpu", "--out", str(out)]
    assert main(argv) == 0
    slim = Bundle.open(out)
    assert "target.backbone_local" in slim.manifest.every_graph
    with slim.session() as session:
        from csd.runtime import GenerateOptions

        made = session.generate([1], GenerateOptions(num_iter=8, head="sequential", refresh=2))
    assert made.stats.local_steps == {"target": 2}


def test_a_bundle_that_is_there_gets_no_new_graphs(local_bundle, capsys):
    argv = ["--rebuild", local_bundle, "--backend", "tensorrt", "--local-steps"]
    assert "--local-steps" in failure(main, argv, capsys)


class TestWeightsFile:
    def test_what_another_file_holds_is_not_written_again(self, tmp_path):
        shared: SharedWeights = {}
        one, two = np.arange(600, dtype=np.float32), np.ones(300, dtype=np.float32)
        with WeightsFile(tmp_path / "a.onnx", shared) as first:
            places = [first.add([one]), first.add([two])]
        with WeightsFile(tmp_path / "b.onnx", shared) as second:
            assert second.add([one[:100], one[100:]]) == places[0]
            own = second.add([2 * two])
            assert second.add([two]) == places[1]
        assert first.files == [first.path]
        assert second.files == [first.path, second.path]
        assert own == Place(second.path, 0, 1200)
        assert second.path.stat().st_size == 1200
        for place, wanted in zip(places, (one, two), strict=True):
            raw = place.file.read_bytes()[place.start : place.start + place.length]
            np.testing.assert_array_equal(np.frombuffer(raw, np.float32), wanted)

    def test_a_file_with_nothing_of_its_own_is_none(self, tmp_path):
        shared: SharedWeights = {}
        values = np.arange(600, dtype=np.float32)
        with WeightsFile(tmp_path / "a.onnx", shared) as first:
            first.add([values])
        with WeightsFile(tmp_path / "b.onnx", shared) as second:
            second.add([values])
        assert second.files == [first.path]
        assert not second.path.exists()

    def test_values_that_are_twice_in_one_graph_are_written_twice(self, tmp_path):
        zeros = np.zeros(300, dtype=np.float32)
        with WeightsFile(tmp_path / "a.onnx", {}) as file:
            first, second = file.add([zeros]), file.add([zeros])
        assert (first.start, second.start) == (0, 1216)

    def test_the_same_bytes_of_another_length_are_another_tensor(self, tmp_path):
        shared: SharedWeights = {}
        with WeightsFile(tmp_path / "a.onnx", shared) as file:
            file.add([np.zeros(300, dtype=np.float32)])
        with WeightsFile(tmp_path / "b.onnx", shared) as file:
            place = file.add([np.zeros(301, dtype=np.float32)])
        assert place.file == tmp_path / "b.onnx.data"
