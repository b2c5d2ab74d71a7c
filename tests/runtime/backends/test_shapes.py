from __future__ import annotations

import pytest

from csd.runtime import BackendError
from csd.runtime.backends import GraphDemand
from csd.runtime.backends.shapes import Limits, bucket, call_dims, check_calls, leading_dim
from csd.runtime.backends.tensorrt.plan import clipped, fit
from csd.runtime.bundle.manifest import GraphSpec, TensorSpec


def graph(inputs, outputs):
    return GraphSpec(
        {"x.onnx": "0"},
        tuple(TensorSpec(name, "float32", shape) for name, shape in inputs.items()),
        tuple(TensorSpec(name, "float32", shape) for name, shape in outputs.items()),
        {},
    )


HEAD_STEP = graph(
    {"x": ("R", 4), "token": ("R",), "mods": ("S", "N", 8)}, {"eps": ("R", 4), "v": ("R", 4)}
)
BACKBONE = graph({"tokens": ("B", "V", 4), "query": ("B", "P")}, {"z": ("B", "P", 6)})


def test_buckets_waste_no_more_than_a_third_above_four_rows():
    assert [bucket(rows) for rows in (1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 17, 25)] == [
        1, 2, 3, 4, 6, 6, 8, 8, 12, 16, 24, 32,
    ]  # fmt: skip
    sizes = {bucket(rows) for rows in range(1, 5000)}
    assert all(rows <= bucket(rows) < max(rows + 2, 1.5 * rows) for rows in range(1, 5000))
    assert len(sizes) == 25


def test_sizes_come_from_the_shapes_of_the_inputs():
    shapes = {"x": (5, 4), "token": (5,), "mods": (3, 2, 8)}
    assert call_dims("head", HEAD_STEP, shapes) == {"R": 5, "S": 3, "N": 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token": (4,)}, r"head: token is \[4\], not \['R'\] with {'R': 5"),
        ({"x": (5, 3)}, r"head: x is \[5, 3\]"),
        ({"x": (5, 4, 1)}, r"head: x is \[5, 4, 1\]"),
        ({"y": (1,)}, "head takes other inputs: check y"),
    ],
)
def test_inputs_that_do_not_fit_are_named(change, message):
    shapes = {"x": (5, 4), "token": (5,), "mods": (3, 2, 8), **change}
    with pytest.raises(BackendError, match=message):
        call_dims("head", HEAD_STEP, shapes)


def test_calls_are_split_along_what_leads_every_output():
    assert leading_dim(HEAD_STEP) == "R"
    assert leading_dim(BACKBONE) == "B"
    assert leading_dim(graph({"a": (3, "R")}, {"b": ("R",)})) is None
    assert leading_dim(graph({"a": ("R",)}, {"b": ("R",), "c": ("B",)})) is None
    assert leading_dim(graph({"a": ("R",)}, {"b": (4,)})) is None


@pytest.mark.parametrize(
    ("rows", "most", "sizes"),
    [(7, 7, [7]), (8, 7, [4, 4]), (20, 7, [7, 7, 6]), (0, 7, [0]), (3, 1, [1, 1, 1])],
)
def test_parts_are_about_equal_and_cover_everything(rows, most, sizes):
    limits = Limits("head", {"R": (1, most)}, "rebuild")
    parts = list(limits.parts(HEAD_STEP, {"R": rows}))
    assert [part.stop - part.start for part in parts] == sizes
    covered = [index for part in parts for index in range(part.start, part.stop)]
    assert covered == list(range(rows))


def test_rows_and_known_tokens_are_padded_within_the_profile():
    limits = Limits("x", {"R": (4, 30), "V": (1, 16), "B": (1, 2)}, "csd-export --rebuild x")
    assert limits.padded({"R": 1, "V": 0, "B": 2}) == {"R": 4, "V": 1, "B": 2}
    assert limits.padded({"R": 25, "V": 9, "B": 1}) == {"R": 30, "V": 9, "B": 1}
    assert limits.lowered({"R": 26}).padded({"R": 25, "V": 9, "B": 1})["R"] == 26
    for dims in ({"R": 31, "V": 1, "B": 1}, {"R": 1, "V": 1, "B": 3}, {"R": 1, "V": 17, "B": 1}):
        name = next(n for n, size in dims.items() if size > limits.ranges[n][1])
        with pytest.raises(BackendError) as error:
            limits.padded(dims)
        assert f"asked for {name} = {dims[name]}, its engine's profile takes" in str(error.value)
        wider = f"{limits.ranges[name][0]}:{dims[name]}:{dims[name]}"
        assert f"csd-export --rebuild x --profile x.{name}={wider}" in str(error.value)


TWO_MODELS = {
    "target.backbone": {"S": (1, 4)},
    "target.head_modulation": {"S": (1, 4), "N": (1, 8)},
    "target.head_step": {"S": (2, 5), "N": (1, 8)},
    "draft.head_modulation": {"S": (1, 4), "N": (1, 9)},
    "draft.head_step": {"S": (1, 20), "N": (1, 6)},
}


def of_two_models(graph):
    return Limits(graph, TWO_MODELS[graph], f"rebuild {graph}")


HEADS = [
    f"{role}.{name}" for role in ("target", "draft") for name in ("head_modulation", "head_step")
]


def call(graph, dims):
    return of_two_models(graph), dims, {"S": HEADS, "N": HEADS}


def options(graph, name, asked):
    with pytest.raises(BackendError) as error:
        check_calls([call(graph, {**dict.fromkeys(TWO_MODELS[graph], 4), name: asked})], TWO_MODELS)
    start, end = str(error.value).split(f": rebuild {graph} ")
    assert start.startswith(f"{graph} was asked for {name} = {asked}, its engine's profile takes ")
    return sorted(part.strip() for part in end.split("--profile ")[1:])


@pytest.mark.parametrize("graph", ["target.head_modulation", "draft.head_modulation"])
def test_a_wider_profile_is_for_all_graphs_that_are_called_with_it_and_lack_it(graph):
    assert options(graph, "S", 9) == [
        "draft.head_modulation.S=1:9:9", "target.head_modulation.S=1:9:9",
        "target.head_step.S=2:9:9",
    ]  # fmt: skip


def test_a_range_that_is_wide_enough_is_left_alone():
    assert options("target.head_step", "S", 1) == ["target.head_step.S=1:1:5"]
    assert options("draft.head_step", "N", 8) == ["draft.head_step.N=1:8:8"]


def test_all_calls_of_a_run_are_checked_at_once():
    calls = [
        call("target.head_modulation", {"S": 9, "N": 8}),
        call("draft.head_step", {"S": 9, "N": 7}),
        call("target.head_step", {"S": 1, "N": 1}),
    ]
    with pytest.raises(BackendError) as error:
        check_calls(calls, TWO_MODELS)
    assert str(error.value) == (
        "target.head_modulation was asked for S = 9, its engine's profile takes 1 to 4: "
        "rebuild target.head_modulation --profile target.head_modulation.S=1:9:9 "
        "--profile target.head_step.S=1:9:9 --profile draft.head_modulation.S=1:9:9 "
        "--profile draft.head_step.N=1:7:7"
    )
    check_calls([call("draft.head_step", {"S": 9, "N": 6})], TWO_MODELS)


def test_a_call_of_one_graph_widens_that_graph_alone():
    with pytest.raises(BackendError) as error:
        of_two_models("draft.head_step").padded({"S": 21, "N": 1})
    assert str(error.value).endswith("rebuild draft.head_step --profile draft.head_step.S=1:21:21")


DEMAND = {
    "target.backbone": GraphDemand({"B": 8, "V": 16, "P": 4}, shrinks="B"),
    "target.head_modulation": GraphDemand(
        {"N": 64, "S": 10}, shrinks="N", least=2, reader="target.head_step"
    ),
    "target.head_step": GraphDemand({"N": 64, "S": 10, "R": 640}, shrinks="R"),
    "decoder": GraphDemand({"B": 4}, shrinks="B"),
}
SIZES = {graph: demand.sizes for graph, demand in DEMAND.items()}


def need(name, dims):
    kept = 100 * dims["N"] if name.endswith("modulation") else 0
    turn = {"backbone": 50, "decoder": 2000}.get(name.split(".")[-1], 0) * dims.get("B", 0)
    return kept, turn + 10 * dims.get("R", 0)


def test_a_run_that_fits_is_left_alone():
    assert fit(DEMAND, need, None) == SIZES
    assert fit(DEMAND, need, 6400 + 8000) == SIZES


@pytest.mark.parametrize("available", [14000, 9000, 4000, 2500, 2200])
def test_calls_are_made_smaller_until_they_fit(available):
    sizes = fit(DEMAND, need, available)
    needs = [need(name, dims) for name, dims in sizes.items()]
    assert max(n[0] for n in needs) + max(n[1] for n in needs) <= available
    step, modulation = sizes["target.head_step"], sizes["target.head_modulation"]
    assert step["N"] == modulation["N"] >= 2
    assert step["S"] == modulation["S"] == 10
    assert sizes["target.backbone"]["V"] == 16


def test_what_cannot_be_made_to_fit_says_how_much_it_needs():
    def large(name, dims):
        return tuple(size << 20 for size in need(name, dims))

    with pytest.raises(BackendError) as error:
        fit(DEMAND, large, 2100 << 20, weights=5 << 20)
    assert "needs 2205 MB of device memory, the limit is 2105 MB: give --memory-limit 2205" in str(
        error.value
    )


def test_sizes_are_brought_down_to_the_profiles():
    tops = {("target.head_step", "N"): 10, ("target.head_step", "R"): 99, ("decoder", "B"): 3}
    sizes = clipped(DEMAND, lambda name, dimension: tops.get((name, dimension)))
    assert sizes["target.head_step"].sizes == {"N": 10, "S": 10, "R": 99}
    assert sizes["target.head_modulation"].sizes["N"] == 10
    assert sizes["decoder"].sizes == {"B": 3}
    smallest = clipped(DEMAND, lambda name, dimension: 1)
    assert smallest["target.head_step"].sizes == {"N": 2, "S": 10, "R": 1}, "guidance takes a pair"
