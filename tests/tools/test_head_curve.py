from __future__ import annotations

import json

import pytest

from csd.tools import head_curve, zoo_eval

pytestmark = pytest.mark.slow


def test_the_head_comparison_lists_every_sampler(zoo_bundle, tmp_path):
    path = tmp_path / "head.json"
    argv = [str(zoo_bundle), "--tokens", "3", "--batch", "2", "--cfg", "2", "--json", str(path)]
    assert head_curve.main(argv) == 0
    rows = json.loads(path.read_text(encoding="utf-8"))["results"]
    by_name = {row["name"]: row for row in rows}
    assert by_name["sequential"]["rounds"] == 100
    assert by_name["speculative, fitted, calibrated K"]["rounds"] < 30
    assert by_name["parallel, fitted, tolerance 0.001"]["deviation"] < 0.01


def test_the_zoo_evaluation_needs_the_data_set(zoo_bundle, tmp_path, capsys):
    assert zoo_eval.main([str(zoo_bundle), "--data", str(tmp_path)]) == 2
    assert "apt-get install dataset-fashion-mnist" in capsys.readouterr().err
