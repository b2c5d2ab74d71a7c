from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from csd.runtime import Bundle, GenerateOptions, OptionError
from csd.runtime.bundle.manifest import Manifest
from csd.runtime.bundle.presets import Evidence, Preset
from csd.runtime.cli import main as generate
from csd.runtime.command.files import only_writer
from csd.runtime.errors import BundleError
from csd.tools.eval.commands import tune
from csd.tools.eval.metrics.halves import Estimate
from csd.tools.eval.store.database import open_database
from csd.tools.eval.store.runs import all_runs, numbers_of
from csd.tools.eval.tune.candidates import Candidate, candidates, name_of
from csd.tools.eval.tune.presets import write_preset
from csd.tools.eval.tune.search import TRIES, Measured, OutOfTimeError, search

from ...helpers import edit_manifest, failure
from .test_features import archive, write_graph

FULL = GenerateOptions(num_iter=16, head_steps=100, mask_schedule="cosine", cfg_schedule="linear")
MARGIN = 0.02


def settings(count):
    return [Candidate(f"c{k}", FULL) for k in range(count)]


class ToyBench:
    """Settings of known drops and seconds; images are noise of one standard deviation."""

    def __init__(self, drops, seconds, seed=0, spread=0.1, calls=10**9):
        self.drops, self.seconds = drops, seconds
        self.rng, self.spread, self.calls = np.random.default_rng(seed), spread, calls
        self.asked = []

    def measure(self, candidate, images, *, fresh):
        if len(self.asked) == self.calls:
            raise OutOfTimeError
        self.asked.append((candidate.name, images, fresh))
        place = int(candidate.name[1:])
        error = self.spread / np.sqrt(images)
        value = self.drops[place] + error * self.rng.normal()
        replicates = value + error * np.array([-1.0, 1.0] * 50) * np.sqrt(99 / 100)
        return Measured(Estimate(value, replicates), self.seconds[place], 1.0, images)


def find(bench, count, most=4096):
    return search(bench, settings(count), margin=MARGIN, error=0.05, most=most,
                  report=lambda line: None)  # fmt: skip


def test_the_fastest_setting_within_the_margin_is_found():
    # The faster the worse; c5 is the fastest that is within the margin.
    drops = np.array([0.5, 0.3, 0.2, 0.1, 0.05, 0.005, 0.0, 0.0, 0.0, 0.0])
    seconds = np.linspace(0.1, 0.9, 10)
    for seed in range(10):
        bench = ToyBench(drops, seconds, seed)
        found = find(bench, 10)
        assert found.candidate.name == "c5"
        assert found.complete
        # What a setting has in a round counts for the next one.
        most = {(name, fresh): images for name, images, fresh in bench.asked}
        assert sum(most.values()) < 10 * 4096 / 2


def test_images_of_the_test_are_others_than_those_of_the_rounds():
    bench = ToyBench([0.0] * 4, [0.5] * 4)
    assert find(bench, 4).candidate is not None
    assert [fresh for *_, fresh in bench.asked].count(True) == 1
    assert bench.asked[-1][1:] == (4096, True)


def test_a_setting_that_is_too_bad_is_taken_as_seldom_as_is_said():
    """Settings at the margin, which is the worst case: each search errs with at most 5 %."""
    taken = sum(
        find(ToyBench([MARGIN] * 6, np.linspace(0.2, 0.9, 6), seed), 6, most=256).candidate
        is not None
        for seed in range(300)
    )
    print(f"{taken} of 300 taken")
    # 15 are expected at most; 26 or more are seen once in 200.
    assert taken < 26


def test_what_waited_is_tested_where_the_fastest_fail():
    drops = [0.03, 0.03, 0.03, 0.03, 0.0, 0.0]
    seconds = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    bench = ToyBench(drops, seconds, spread=0.4)
    bench.spread = 0.05
    found = find(bench, 6, most=64)
    names = [candidate.name for candidate, _ in found.tested]
    assert len(names) <= TRIES
    assert found.candidate is None or found.candidate.name in ("c4", "c5")


def test_nothing_slower_is_taken():
    assert find(ToyBench([0.0] * 3, [1.0, 1.2, 0.99]), 3).candidate is None


@pytest.mark.parametrize("calls", [0, 3, 11])
def test_a_spent_budget_takes_nothing(calls):
    found = find(ToyBench([0.0] * 4, [0.5] * 4, calls=calls), 4)
    assert (found.candidate, found.complete) == (None, False)


def test_settings_are_all_that_differ_and_each_once():
    found = candidates(FULL, modes=["target", "draft", "csd"], precisions=[None, "int8"],
                       max_gamma=8)  # fmt: skip
    assert len({(one.options, one.precision) for one in found}) == len(found)
    assert (FULL, None) not in {(one.options, one.precision) for one in found}
    assert (FULL, "int8") in {(one.options, one.precision) for one in found}
    assert len({one.name for one in found}) == len(found)
    assert {one.options.gamma for one in found if one.options.mode == "csd"} == {4, 8}
    assert {one.options.cfg for one in found} == {FULL.cfg}
    steps = {one.options.head_steps for one in found}
    assert steps == {100, 50, 25, (100, 10)}
    assert {one.options.num_iter for one in found} == {16, 12, 8, 6, 4}
    alone = candidates(FULL, modes=["target"], precisions=[None], max_gamma=2, head=False)
    assert [one.name for one in alone] == [f"target-ar{n}-h100" for n in (12, 8, 6, 4)]
    local = candidates(
        FULL, modes=["target"], precisions=[None], max_gamma=2, head=False, local=True
    )
    assert local[:4] == alone
    assert [one.name for one in local[4:]] == [f"target-ar16r{n}-h100" for n in (2, 3, 4)]
    assert {one.options.refresh for one in local} == {1, 2, 3, 4}
    annealed = GenerateOptions(**{**FULL.to_dict(), "head_steps": (50, 5)})
    assert name_of(annealed, "fp16") == "target-ar16-h50to5-fp16"
    found = candidates(annealed, modes=["target"], precisions=[None], max_gamma=1)
    assert {one.options.head_steps for one in found} == {(50, 5)}


@pytest.fixture
def bundle(tiny_bundle, tmp_path):
    write_graph(tmp_path / "g.onnx", side=8)
    archive(tmp_path / "r.npz", side=8)
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


def argv_of(bundle, *more):
    place = bundle.parent
    return [str(bundle), f"--db={place / 't.db'}", f"--features={place / 'g.onnx'}",
            f"--real={place / 'r.npz'}", "--threads=1", "--quiet", "--num-iter=8",
            "--head-steps=8:7", "--images=32", "--modes=target", "--batch=8", *more]  # fmt: skip


def test_a_preset_is_written_and_decodes(bundle, tmp_path, capsys):
    before = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    file = tmp_path / "tune.json"
    code = tune.main(argv_of(bundle, "--within=100%", "--cfg=2", f"--json={file}"))
    out = capsys.readouterr().out
    assert code == 0, out
    assert "preset tuned: target-" in out
    preset = Bundle.open(bundle).preset("tuned")
    assert preset.options.cfg == 2
    values = json.loads(file.read_text(encoding="utf-8"))
    assert (values["exit_code"], values["name"], values["verdict"]) == (0, "tuned", out.strip())
    assert values["preset"]["options"]["cfg"] == 2
    assert values["preset"]["evidence"]["images"] == 32
    assert preset.evidence.images == 32
    assert preset.evidence.most <= preset.evidence.margin == 1
    assert 0 < preset.evidence.seconds < preset.evidence.baseline_seconds
    assert preset.evidence.metric == "kernel distance, g"
    after = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed <= {"presets", "schema_version"}
    assert sorted(path.name for path in bundle.iterdir()) == sorted(
        [*before_files(before), "manifest.json"]
    )

    def stats(*more):
        files = [f"--out={tmp_path / 'x.png'}", f"--stats={tmp_path / 's.json'}"]
        argv = [str(bundle), "--labels=1", "--quiet", "--preset=tuned", *files, *more]
        assert generate(argv) == 0
        return json.loads((tmp_path / "s.json").read_text(encoding="utf-8"))["options"]

    expected = json.loads(json.dumps(preset.options.to_dict()))
    assert stats() == expected
    assert stats("--num-iter=3") == {**expected, "num_iter": 3}
    # What is given counts where it is the default too, and must have an effect under the result.
    assert stats("--cfg=1") == {**expected, "cfg": 1.0}
    argv = [bundle, "--labels=1", "--preset=tuned", f"--out={tmp_path / 'y.png'}"]
    assert "--gamma has no effect" in failure(generate, [*argv, "--gamma=8"], capsys)
    guided = [*argv, "--cfg=1", "--cfg-interval=0:1"]
    assert "--cfg-interval has no effect" in failure(generate, guided, capsys)


def before_files(values):
    names = {name for graph in values["graphs"].values() for name in graph["files"]}
    return names | {values["calibration"]["file"]}


def test_nothing_good_enough_writes_nothing(bundle, capsys):
    before = (bundle / "manifest.json").read_bytes()
    assert tune.main(argv_of(bundle, "--within=0.0001%", "--json=-")) == 1
    printed = capsys.readouterr()
    values = json.loads(printed.out)
    assert (values["exit_code"], values["preset"], values["name"]) == (1, None, None)
    assert values["looked_at"] > 0
    assert "nothing was written" in values["verdict"]
    assert "nothing was written" in printed.err
    assert (bundle / "manifest.json").read_bytes() == before


def test_a_spent_budget_keeps_the_images_and_goes_on(bundle, monkeypatch, capsys):
    before = (bundle / "manifest.json").read_bytes()
    moments = iter(range(10**6))
    with monkeypatch.context() as patch:
        patch.setattr("time.monotonic", lambda: next(moments))
        assert tune.main(argv_of(bundle, "--within=100%", "--budget=12s")) == 3
    assert "the same command goes on" in capsys.readouterr().out
    assert (bundle / "manifest.json").read_bytes() == before
    with open_database(bundle.parent / "t.db") as db:
        there = sum(len(numbers_of(db, run)) for run in all_runs(db))
        assert there > 0
    assert tune.main(argv_of(bundle, "--within=100%")) == 0


EVIDENCE = Evidence("m", 9, 0.02, 0.0, 0.01, 0.05, 1.0, 2.0, "b", "p", "2026-01-01")


def test_presets_stand_beside_each_other_and_replace_their_own(bundle):
    for name, cfg in (("a", 1.0), ("b", 2.0), ("a", 3.0)):
        write_preset(bundle, name, Preset(GenerateOptions(cfg=cfg), "fp32", EVIDENCE))
    presets = Bundle.open(bundle).manifest.presets
    assert {name: preset.options.cfg for name, preset in presets.items()} == {"a": 3, "b": 2}
    text = (bundle / "manifest.json").read_text(encoding="utf-8")
    assert Manifest.from_json(text).presets == presets


def test_one_process_writes_at_a_time(bundle):
    preset = Preset(GenerateOptions(), None, EVIDENCE)
    with only_writer(bundle), pytest.raises(BundleError, match="another process writes"):
        write_preset(bundle, "a", preset)


def test_a_preset_that_is_not_there_is_told(bundle, capsys):
    assert "has no preset 'x': make one with csd-eval tune" in failure(
        generate, [bundle, "--labels=1", "--preset=x"], capsys
    )
    write_preset(bundle, "a", Preset(GenerateOptions(), None, EVIDENCE))
    with pytest.raises(OptionError, match="has no preset 'x': give one of a"):
        Bundle.open(bundle).preset("x")


def test_a_preset_keeps_what_is_given_besides():
    preset = Preset(GenerateOptions(cfg=3.0, num_iter=8), None, EVIDENCE)
    assert preset.with_given(GenerateOptions(), ()) == preset.options
    given = preset.with_given(GenerateOptions(num_iter=4, mode="draft"), ["num_iter", "mode", "x"])
    assert given == GenerateOptions(cfg=3.0, num_iter=4, mode="draft")
    # A default counts too where it is given.
    assert preset.with_given(GenerateOptions(), ["cfg"]) == GenerateOptions(num_iter=8)


BAD = {
    "--budget=5": "'5' is no time: give one as 90s, 30min or 2h",
    "--budget=0s": "is no time",
    "--name=a/b": "wanted a name of letters and digits",
    "--modes=fast": "modes has 'fast'",
    "--precisions=fp8": "precisions has 'fp8'",
    "--precisions=fp16": "has no fp16 graphs",
    "--features=gone.onnx": "no graph at gone.onnx",
    "--within=0": "is no share",
}


@pytest.mark.parametrize("option", BAD)
def test_what_cannot_be_searched_is_one_line(option, bundle, capsys):
    before = (bundle / "manifest.json").read_bytes()
    argv = [part for part in argv_of(bundle) if part.split("=")[0] != option.split("=")[0]]
    assert BAD[option] in failure(tune.main, [*argv, option], capsys)
    assert (bundle / "manifest.json").read_bytes() == before
    assert not (bundle.parent / "t.db").exists()


def test_links_are_not_written_through(bundle, capsys):
    (bundle / "manifest.json").rename(bundle.parent / "real.json")
    (bundle / "manifest.json").symlink_to(bundle.parent / "real.json")
    assert "is a link" in failure(tune.main, argv_of(bundle), capsys)


def test_a_bundle_of_one_model_has_one_mode(bundle, capsys):
    from ...helpers import no_draft

    edit_manifest(bundle, no_draft)
    argv = [part for part in argv_of(bundle) if not part.startswith("--modes")]
    assert "nothing to choose among" in failure(tune.main, [*argv, "--modes=draft"], capsys)
