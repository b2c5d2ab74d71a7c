from __future__ import annotations

from dataclasses import replace

import pytest

from csd.runtime import Bundle, OptionError
from csd.runtime.bundle.graph_tensors import LOCAL_GRAPHS
from csd.tools.page.controls import Controls, choose

from ...helpers import no_draft


def manifest(bundle):
    return Bundle.open(bundle).manifest


def test_a_bundle_offers_what_it_can_run(tiny_bundle, make_bundle):
    whole = manifest(tiny_bundle)
    pair = Controls.of(whole)
    assert pair.modes == ("target", "csd", "draft")
    assert pair.refreshes == ("1",)
    assert "solver" not in pair.heads
    assert 1 <= pair.gamma <= pair.max_gamma
    assert pair.classes[:2] == ("0", "1")
    alone = Controls.of(manifest(make_bundle(no_draft)))
    assert (alone.modes, alone.max_gamma) == (("target",), 0)
    names = tuple(f"c{k}" for k in range(len(pair.classes)))
    assert Controls.of(replace(whole, class_names=names)).classes == names
    local = {f"target.{name}": whole.graphs["target.backbone"] for name in LOCAL_GRAPHS}
    more = Controls.of(replace(whole, graphs={**whole.graphs, **local}))
    assert more.refreshes == ("1", "2", "3", "4", "auto")
    solved = {**whole.models, "target": replace(whole.target, sampling_algo="dpm-solver")}
    assert "solver" in Controls.of(replace(whole, models=solved)).heads


def test_a_choice_is_the_runtimes_options_and_the_targets(tiny_bundle):
    choice = choose(manifest(tiny_bundle), "3", 7, "csd", "speculative", 4, "2:5", 2.5)
    assert (choice.label, choice.seed) == (3, 7)
    options = choice.options
    assert (options.mode, options.head, options.gamma) == ("csd", "speculative", 4)
    assert (options.refresh, options.cfg) == ((2, 5), 2.5)
    target = choice.of_target.options
    assert (target.mode, target.head, target.refresh, target.cfg) == ("target", "auto", 1, 2.5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({0: "all"}, "10 classes are named: give one"), ({0: "x"}, "label 'x' is not known"),
        ({1: 1.5}, "seed is 1.5 (float): give a whole number"), ({2: "fast"}, "mode is 'fast'"),
        ({3: "x"}, "head is 'x'"), ({4: None}, "gamma is None"), ({5: "0"}, "refresh is 0"),
        ({6: None}, "cfg is None"),
    ],
)  # fmt: skip
def test_what_cannot_be_chosen_is_told_by_the_runtime(changed, message, tiny_bundle):
    values = ["3", 0, "csd", "auto", 4, "1", 1.0]
    for place, value in changed.items():
        values[place] = value
    with pytest.raises(OptionError) as told:
        choose(manifest(tiny_bundle), *values)
    assert str(told.value).startswith(message)
