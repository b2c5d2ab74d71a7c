from __future__ import annotations

import pytest

from csd.export.profiles import MOST_ROWS, Limits, changed_profiles, default_profile, parse_change
from csd.runtime.config import PRESETS
from csd.runtime.decoding.model import MODULATION_BYTES
from csd.runtime.errors import ExportError

GRAPHS = (
    "target.backbone", "target.head_modulation", "target.head_step", "target.head_chain",
    "decoder", "ops.accept",
)  # fmt: skip


def profiles(preset, **limits):
    sizes = Limits(**{"max_batch": 8, "max_gamma": 32, "head_steps": 100, **limits})
    return {name: default_profile(name, PRESETS[preset], sizes) for name in GRAPHS}


@pytest.mark.parametrize("preset", list(PRESETS))
@pytest.mark.parametrize("limits", [{}, {"max_batch": 1, "max_gamma": 1, "head_steps": 1}])
def test_ranges_ascend_and_have_room_for_a_guided_image(preset, limits):
    for name, profile in profiles(preset, **limits).items():
        for dimension, (least, typical, most) in profile.items():
            assert 0 <= least <= typical <= most, (name, dimension)
        for dimension, floor in (("R", 2 if name != "ops.accept" else 1), ("T", 2)):
            assert profile.get(dimension, (0, 0, floor))[2] >= min(floor, MOST_ROWS)


@pytest.mark.parametrize(
    ("preset", "step_rows", "conditions"),
    [
        ("mar_base", (1, 128, 1024), (1, 8, 32)),
        ("mar_large", (1, 128, 1024), (1, 8, 20)),
        ("fashion_mnist_target", (1, 32, 1024), (1, 2, 317)),
    ],
)
def test_the_ranges_of_presets(preset, step_rows, conditions):
    got = profiles(preset)
    assert got["target.head_step"] == {"R": step_rows, "N": conditions, "S": (1, 100, 100)}
    assert got["target.head_modulation"]["N"] == conditions
    length = PRESETS[preset].seq_len
    assert got["target.backbone"]["B"] == (1, 2, 66)
    assert got["target.backbone"]["V"] == (0, length // 2, length)
    modulation = 4 * conditions[2] * 100 * PRESETS[preset].modulation_dim
    assert modulation <= MODULATION_BYTES


def test_a_session_at_the_limits_fits_the_backbone():
    """Prefix verification sends one image's prefixes, every other mode one row for each image."""
    for batch, gamma in ((1, 8), (8, 2), (3, 3)):
        most = profiles("mar_base", max_batch=batch, max_gamma=gamma)["target.backbone"]["B"][2]
        assert most == 2 * max(batch, gamma + 1)


def test_a_change_replaces_a_range_of_the_graphs_it_names():
    before = {
        "target.head_step": {"R": (1, 2, 3), "N": (1, 1, 1)},
        "draft.head_step": {"R": (1, 2, 3), "N": (1, 1, 1)},
        "decoder": {"B": (1, 1, 8)},
    }
    changes = [parse_change(t) for t in ("head_step.R=1:64:512", "draft.head_step.N=2:2:4")]
    after = changed_profiles(before, changes, PRESETS["mar_base"])
    assert after == {
        "target.head_step": {"R": (1, 64, 512), "N": (1, 1, 1)},
        "draft.head_step": {"R": (1, 64, 512), "N": (2, 2, 4)},
        "decoder": {"B": (1, 1, 8)},
    }
    assert before["draft.head_step"]["R"] == (1, 2, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("head_step.R=1:64", "give GRAPH.DIMENSION=LEAST:TYPICAL:MOST, as in head_step.R=1:64:512"),
        ("R=1:2:3", "give GRAPH.DIMENSION"),
        ("head_step.R=-1:2:3", "give GRAPH.DIMENSION"),
        ("head_step.R=5:2:9", "is not in ascending order"),
        ("heads.R=1:2:3", "no graph heads; the bundle has target.head_step, decoder"),
        ("head_step.B=1:2:3", "target.head_step has no dimension B, it has R, N"),
        ("head_step.R=0:2:3", "R of head_step can be 1 to 1048576"),
        ("backbone.V=0:9:257", "V of backbone can be 0 to 256"),
        ("backbone.P=0:1:2", "P of backbone can be 1 to 256"),
        ("head_chain.S=1:100:1001", "S of head_chain can be 1 to 1000"),
    ],
)
def test_a_bad_profile_is_explained(text, message):
    known = {
        "target.head_step": {"R": (1, 2, 3), "N": (1, 1, 1)},
        "decoder": {"B": (1, 1, 8)},
    }
    if "backbone" in text:
        known = {"target.backbone": dict.fromkeys("BVP", (1, 1, 1))}
    if "head_chain" in text:
        known = {"target.head_chain": {"S": (1, 1, 1)}}
    with pytest.raises(ExportError) as error:
        changed_profiles(known, [parse_change(text)], PRESETS["mar_base"])
    assert message in str(error.value)
    assert repr(text) in str(error.value)
