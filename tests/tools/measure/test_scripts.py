from __future__ import annotations

import json

import pytest

from csd.tools.measure import (
    backbone_times,
    batch_memory,
    head_curve,
    head_fidelity,
    large_batch,
    option_sets,
    stream,
    zoo_eval,
)
from csd.tools.measure import profile as profile_target

from ...helpers import no_draft

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


def test_the_comparison_with_the_sequential_head_finds_them_alike(zoo_bundle, tmp_path):
    path = tmp_path / "fidelity.json"
    argv = [str(zoo_bundle), "--images", "1", "--tolerances", "0.1,0.001", "--json", str(path)]
    assert head_fidelity.main(argv) == 0
    report = json.loads(path.read_text(encoding="utf-8"))
    loose, tight = report["images_of_one_seed"]
    assert 30 < loose["psnr_least"] < tight["psnr_least"]
    assert loose["sweeps_per_token"] < tight["sweeps_per_token"] < 20
    exact, *others = report["csd"]
    assert exact["tolerance"] == 0
    assert exact["sweeps_per_block"] > 4 * others[0]["sweeps_per_block"]
    assert abs(exact["acceptance_rate"] - others[-1]["acceptance_rate"]) < 0.03


def test_without_a_draft_only_images_are_compared(make_bundle, tmp_path):
    argv = [str(make_bundle(no_draft)), "--images", "1", "--json", str(tmp_path / "x.json")]
    assert head_fidelity.main(argv) == 0
    report = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert report["csd"] == []
    assert len(report["images_of_one_seed"]) == 4


def test_the_zoo_evaluation_needs_the_data_set(zoo_bundle, tmp_path, capsys):
    assert zoo_eval.main([str(zoo_bundle), "--data", str(tmp_path)]) == 2
    assert "apt-get install dataset-fashion-mnist" in capsys.readouterr().err


@pytest.mark.parametrize("head", ["sequential", "auto"])
def test_the_profile_accounts_for_the_whole_time(tiny_bundle, tmp_path, head):
    path = tmp_path / "profile.json"
    argv = [str(tiny_bundle), "--images", "2", "--head", head, "--json", str(path)]
    assert profile_target.main(argv) == 0
    report = json.loads(path.read_text(encoding="utf-8"))
    parts = {row["part"]: row for row in report["parts"]}
    networks = {"backbone", "head_modulation", "head_step"}
    assert set(parts) >= networks | {"Python", "whole"}
    assert parts["backbone"]["calls"] == parts["head_modulation"]["calls"] == 16
    assert (parts["head_step"]["calls"] == 16 * 20) == (head == "sequential")
    assert sum(row["share"] for row in parts.values()) == pytest.approx(2)
    assert all(row["milliseconds"] > 0 for row in parts.values())


def test_large_batches_are_held_against_the_target_of_the_same_head(tiny_bundle, tmp_path, capsys):
    path = tmp_path / "large.json"
    argv = [str(tiny_bundle), "--batches=2,3", "--gammas=2", "--repeats=1", f"--json={path}"]
    assert large_batch.main(argv) == 0
    rows = json.loads(path.read_text(encoding="utf-8"))["cases"]
    assert [(row["batch"], row["head"], row["gamma"]) for row in rows] == [
        (batch, head, gamma)
        for batch in (2, 3) for head in ("sequential", "auto") for gamma in (None, 2)
    ]  # fmt: skip
    for target, csd in zip(rows[::2], rows[1::2], strict=True):
        assert target["over_target"] == 1
        assert target["acceptance_rate"] is None
        assert target["shares"]["draft head"] == target["shares"]["accept/resample"] == 0
        assert csd["over_target"] == pytest.approx(target["seconds"] / csd["seconds"])
        assert csd["over_best_target"] <= csd["over_target"]
        assert 0 <= csd["acceptance_rate"] <= 1
        assert 0.5 < sum(csd["shares"].values()) <= 1
    assert large_batch.main([str(tiny_bundle), "--batches=1,999"]) == 2
    assert "export with --max-batch 999" in capsys.readouterr().err


def test_memory_is_of_each_batch_and_mode_alone(tiny_bundle, tmp_path, capsys):
    path = tmp_path / "memory.json"
    argv = [str(tiny_bundle), "--batches=1,8", "--gamma=2", f"--json={path}"]
    assert batch_memory.main(argv) == 0
    rows = json.loads(path.read_text(encoding="utf-8"))["memory"]
    cases = [(batch, mode) for batch in (1, 8) for mode in ("target", "csd")]
    assert [(row["batch"], row["mode"]) for row in rows] == cases
    for row in rows:  # Python and ONNX Runtime alone take more than the least
        assert 2e7 < row["peak_anonymous_bytes"] < row["peak_bytes"] < 1e9
    assert batch_memory.main([str(tiny_bundle), "--batches=999"]) == 2
    assert "export with --max-batch 999" in capsys.readouterr().err


def test_option_sets_are_the_same_tokens_twice_and_others_with_another_seed(
    tiny_bundle, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(option_sets, "CHAIN_HEADS", ("auto",))
    monkeypatch.setattr(option_sets, "_SETS", option_sets._SETS[::3])
    first, again = tmp_path / "first.json", tmp_path / "again.json"
    argv = [str(tiny_bundle), "--threads", "1", "--json"]
    assert option_sets.main([*argv, str(first)]) == 0
    assert option_sets.main([*argv, str(again), "--against", str(first)]) == 0
    rows = json.loads(again.read_text(encoding="utf-8"))["option_sets"]
    assert len(rows) == len({row["tokens_sha256"] for row in rows}) == 5
    assert all(row["same"] for row in rows)
    capsys.readouterr()
    assert option_sets.main([*argv, "-", "--seed", "1", "--against", str(first)]) == 0
    captured = capsys.readouterr()
    assert not any(row["same"] for row in json.loads(captured.out)["option_sets"])
    (tmp_path / "x.json").write_text("[]", encoding="utf-8")
    assert option_sets.main([str(tiny_bundle), "--against", str(tmp_path / "x.json")]) == 2
    assert "give a file that --json of this script saved" in capsys.readouterr().err


def test_a_stream_is_timed_beside_generate_in_every_mode(tiny_bundle, tmp_path, capsys):
    path = tmp_path / "stream.json"
    argv = [str(tiny_bundle), "--threads", "1", "--images", "3", "--clock", "cpu"]
    assert stream.main([*argv, "--json", str(path)]) == 0
    rows = json.loads(path.read_text(encoding="utf-8"))["stream"]
    assert [row["way"] for row in rows] == ["target", "csd, block", "csd, prefix"]
    for row in rows:
        assert 0 < row["quartiles"][0] <= row["ratio"] <= row["quartiles"][1]
        assert min(row["generate"], row["stream"]) > 0
    assert "3 pairs, cpu clock" in capsys.readouterr().out


def test_the_backbone_is_timed_in_every_precision_at_three_ar_steps(emigm_bundle, tmp_path):
    path = tmp_path / "backbone.json"
    argv = [str(emigm_bundle), "--cfg", "3", "--rounds", "2", "--threads", "1", "--json", str(path)]
    assert backbone_times.main(argv) == 0
    rows = json.loads(path.read_text(encoding="utf-8"))["backbone"]
    assert [row["precision"] for row in rows] == ["fp32", "fp16"] * 3
    assert [row["step"] for row in rows] == [4, 4, 8, 8, 12, 12]
    assert [row["batch"] for row in rows] == [1, 1, 1, 1, 2, 2]  # it is guided in an interval
    for full, half in zip(rows[::2], rows[1::2], strict=True):
        assert min(full["cpu_seconds"], full["seconds"], half["cpu_seconds"], half["seconds"]) > 0
        assert full["cpu_ratio"] == 1
        assert half["cpu_ratio"] == pytest.approx(full["cpu_seconds"] / half["cpu_seconds"])
        assert full["known"] + full["predicted"] <= 64
