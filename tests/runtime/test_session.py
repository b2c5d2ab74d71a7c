from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from csd.models import load_mar
from csd.runtime import (
    BackendError,
    Bundle,
    FixedNoise,
    GenerateOptions,
    MARConfig,
    NumericsError,
    OptionError,
    SeededNoise,
    Session,
)
from csd.runtime.backends import OnnxLoader
from csd.runtime.head import HeadSchedule, SequentialSampler
from csd.runtime.schedule import ARSchedule

from ..helpers import DATA, HEAD_STEPS, NUM_ITER, ScriptedNoise, assert_parity, tiny_config
from ..mar_reference import Reference, random_state, unpatchified

EVERY_MODE = {
    "target": GenerateOptions(mode="target", num_iter=NUM_ITER, head="sequential"),
    "draft": GenerateOptions(mode="draft", num_iter=NUM_ITER, head="sequential"),
    "block": GenerateOptions(mode="csd", num_iter=NUM_ITER, gamma=3, head="sequential"),
    "prefix": GenerateOptions(
        mode="csd", num_iter=NUM_ITER, gamma=3, verify="prefix", head="sequential"
    ),
    "guided": GenerateOptions(mode="csd", num_iter=NUM_ITER, gamma=3, cfg=2.0, head="sequential"),
    "relaxed": GenerateOptions(
        mode="csd", num_iter=NUM_ITER, gamma=4, acceptance="relaxed", head="sequential"
    ),
    "annealed": GenerateOptions(
        mode="target", num_iter=NUM_ITER, head_steps=(20, 5), head="sequential"
    ),
    "speculative": GenerateOptions(mode="target", num_iter=NUM_ITER, head="speculative"),
    "parallel": GenerateOptions(mode="target", num_iter=NUM_ITER, head="parallel"),
    "auto": GenerateOptions(mode="csd", num_iter=NUM_ITER, gamma=3, head="auto"),
}
every_mode = pytest.mark.parametrize("options", EVERY_MODE.values(), ids=EVERY_MODE)


@pytest.fixture
def fixed(recorded):
    return FixedNoise(recorded["orders"], recorded["noise"], recorded["inter_noise"])


@pytest.fixture(scope="module")
def graphs(tiny_bundle):
    """Run a graph of the tiny bundle on ONNX Runtime: `graphs(name, **inputs)`."""
    bundle, backend, loaded = Bundle.open(tiny_bundle), OnnxLoader(1), {}

    def run(name, **inputs):
        if name not in loaded:
            loaded[name] = backend.load(tiny_bundle / bundle.manifest.graphs[name].onnx_file)
        return loaded[name].run(inputs)

    return run


def _known(tokens, mask, labels):
    """Index inputs of a backbone graph that knows what `mask` does not hide; L pads."""
    length = mask.shape[1]
    known = [np.flatnonzero(row == 0) for row in mask]
    visible = np.full((len(mask), max(map(len, known))), length)
    for row, positions in zip(visible, known, strict=True):
        row[: len(positions)] = positions
    gathered = np.take_along_axis(tokens, np.minimum(visible, length - 1)[..., None], axis=1)
    query = np.tile(np.arange(length), (len(mask), 1))
    return {"tokens": gathered, "visible": visible, "query": query, "label": labels}


@pytest.mark.parametrize("name", ["target", "draft", "target_uncond"])
def test_backbone_graphs_reproduce_the_recorded_conditions(recorded, graphs, name):
    labels = np.full(3, 10) if name == "target_uncond" else recorded["labels"]
    feeds = _known(recorded["z_tokens"], recorded["z_mask"], labels)
    z = graphs(f"{name.split('_')[0]}.backbone", **feeds)["z"]
    assert_parity(z, recorded[f"z_{name}"], f"z of {name}")


def _head_of_graphs(graphs, x, t, z):
    steps = np.unique(t)
    mods = graphs("target.head_modulation", z=z, timestep=steps)["mods"]
    feeds = {"x": x, "step": np.searchsorted(steps, t), "token": np.arange(len(z)), "mods": mods}
    return graphs("target.head_step", **feeds)


def test_head_graphs_reproduce_the_recorded_head(recorded, graphs):
    out = _head_of_graphs(graphs, *(recorded[f"head_{name}"] for name in ("x", "t", "z")))
    out = np.concatenate([out["eps"], out["v"]], axis=1)
    assert_parity(out, recorded["head_out_target"], "head")


def test_head_graphs_reproduce_the_recorded_guidance(recorded, graphs):
    x, t, z = (recorded[f"head_{name}"] for name in ("x", "t", "z"))
    out = _head_of_graphs(graphs, np.concatenate([x[:6], x[:6]]), t, z)
    eps = out["eps"][6:] + 2.5 * (out["eps"][:6] - out["eps"][6:])
    out = np.concatenate([np.concatenate([eps, eps]), out["v"]], axis=1)
    assert_parity(out, recorded["head_out_target_cfg"], "guided head")


def test_the_decoder_graph_reproduces_the_recorded_images(graphs):
    with np.load(DATA / "vae_reference.npz") as arrays:
        image = graphs("decoder", latents=arrays["latents"])["image"]
        assert_parity(image, arrays["images"], "decoder")


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("kind", ["linear", "constant"])
def test_target_reproduces_the_recorded_decodes(recorded, tiny_session, fixed, cfg, kind):
    options = GenerateOptions(
        mode="target", num_iter=NUM_ITER, cfg=cfg, cfg_schedule=kind, head="sequential"
    )
    result = tiny_session.generate(recorded["labels"], options, noise=fixed)
    assert_parity(result.tokens, recorded[f"ar_tokens_{cfg}_{kind}"], "tokens")
    assert_parity(result.latents, recorded[f"ar_latents_{cfg}_{kind}"], "latents")


def test_images_are_the_decoded_latents(recorded, tiny_session, fixed, graphs):
    options = GenerateOptions(mode="target", num_iter=2, head="sequential")
    result = tiny_session.generate(recorded["labels"], options, noise=fixed)
    decoded = graphs("decoder", latents=result.latents)["image"]
    expected = np.rint((np.clip(decoded, -1, 1) + 1) * 127.5).transpose(0, 2, 3, 1)
    assert result.images.dtype == np.uint8
    np.testing.assert_array_equal(result.images, expected)


@pytest.mark.parametrize("where", ["PyTorch", "ONNX Runtime"])
@pytest.mark.parametrize("cfg", ["1.0", "3.0"])
@pytest.mark.parametrize("kind", ["linear", "constant"])
def test_densities_of_the_first_step_are_the_recorded_ones(
    recorded, tiny_models, graphs, where, cfg, kind
):
    schedule, orders, labels = (
        HeadSchedule.cosine(HEAD_STEPS),
        recorded["orders"],
        recorded["labels"],
    )
    start, stop = ARSchedule(16, NUM_ITER).bounds[0]
    scale = ARSchedule(16, NUM_ITER).guidance(float(cfg), kind)[0]
    positions = np.sort(orders[:, start:stop], axis=1)
    branches = [labels] if cfg == "1.0" else [labels, np.full_like(labels, 10)]
    tokens, mask = np.zeros((3, 16, 16), np.float32), np.ones((3, 16), np.float32)
    zs = []
    for branch in branches:
        with torch.inference_mode():
            if where == "PyTorch":
                args = (torch.from_numpy(a) for a in (tokens, mask, branch))
                z = tiny_models["target"].condition(*args).numpy()
            else:
                z = graphs("target.backbone", **_known(tokens, mask, branch))["z"]
        zs.append(np.take_along_axis(z, positions[..., None], axis=1).reshape(-1, 64))

    def evaluate(x, step, token):
        outs = []
        for z in zs:
            args = (x, schedule.timesteps[step], z[token])
            if where == "PyTorch":
                with torch.inference_mode():
                    eps, v = tiny_models["target"].head(*map(torch.from_numpy, args))
                outs.append((eps.numpy(), v.numpy()))
            else:
                out = _head_of_graphs(graphs, *args)
                outs.append((out["eps"], out["v"]))
        eps = outs[-1][0] + np.float32(scale) * (outs[0][0] - outs[-1][0])
        return (outs[0][0] if len(outs) == 1 else eps), outs[0][1]

    images = np.repeat(np.arange(3), positions.shape[1])
    noise = tuple(
        recorded[name][images, positions.reshape(-1)] for name in ("noise", "inter_noise")
    )
    _, report = SequentialSampler(schedule).sample(
        evaluate, n_tokens=len(images), channels=16, noise=noise
    )
    for name, value in (
        ("mean", report.mean), ("std", report.std), ("sumlogstd", report.sum_log_std),
    ):  # fmt: skip
        expected = recorded[f"step0_{name}_{cfg}_{kind}"][: len(images)]
        assert_parity(value, expected, f"{name} of the first step")


@pytest.mark.parametrize("accepting", [True, False], ids=["accepted", "rejected"])
def test_the_first_verified_block_of_the_fixtures_is_reproduced(recorded, tiny_session, accepting):
    rejected = [] if accepting else None
    noise = ScriptedNoise(
        recorded["orders"], recorded["noise"], recorded["inter_noise"], rejected=rejected
    )
    options = GenerateOptions(
        mode="csd",
        num_iter=NUM_ITER,
        gamma=3,
        prefill=0.15,
        acceptance="relaxed",
        head="sequential",
    )
    result = tiny_session.generate(recorded["labels"], options, noise=noise)
    bounds = ARSchedule(16, NUM_ITER).bounds[2:4]  # recorded are the first two AR steps of it
    positions = np.sort(recorded["orders"][:, bounds[-1][0] : bounds[0][1]], axis=1)
    drawn = np.take_along_axis(result.tokens, positions[..., None], axis=1).reshape(-1, 16)
    if accepting:
        assert_parity(drawn, recorded["cspd_x_1.0"][0], "drafted tokens")
    else:
        assert_parity(drawn, recorded["cspd_tm_1.0"][0], "aligned means of the target")


# Patches, an odd buffer, odd sizes, widths that differ, another epsilon: nothing of the fixtures.
OTHER = MARConfig(
    img_size=30, vae_stride=3, patch_size=2, vae_embed_dim=3, image_kind="pixel",
    encoder_embed_dim=48, encoder_depth=2, encoder_num_heads=3,
    decoder_embed_dim=40, decoder_depth=1, decoder_num_heads=5, mlp_ratio=2.5,
    class_num=7, buffer_size=5, diffloss_d=2, diffloss_w=56, num_sampling_steps=13, norm_eps=1e-5,
)  # fmt: skip


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Weights of another configuration and the bundle exported from them."""
    from csd.export.parts import ModelPart
    from csd.export.writer import ExportRequest, write_bundle

    folder, state = tmp_path_factory.mktemp("other"), random_state(OTHER, seed=3)
    torch.save({"model": state}, folder / "weights.pth")
    model = load_mar(folder / "weights.pth", OTHER)
    request = ExportRequest(
        name="other", draft=None, decoder=None,
        target=ModelPart(OTHER, lambda: load_mar(folder / "weights.pth", OTHER)),
        head_steps=13, max_batch=2, max_gamma=1, class_names=None, sources={},
        calibration_tokens=0,
    )  # fmt: skip
    bundle = write_bundle(request, folder / "bundle", force=False, report=lambda _: None)
    assert all(row.passed for row in bundle.manifest.parity)
    return model, Reference(OTHER, state), Bundle.open(folder / "bundle")


def _other_inputs(head_steps):
    rng, labels = np.random.default_rng(4), np.array([6, 0, 7])
    orders = np.stack([rng.permutation(OTHER.seq_len) for _ in labels])
    initial = rng.standard_normal((*orders.shape, OTHER.token_dim), dtype=np.float32)
    shape = (*orders.shape, head_steps, OTHER.token_dim)
    return labels, orders, initial, rng.standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize(
    ("cfg", "kind", "num_iter", "beta_schedule"),
    [
        (1.0, "linear", 6, "cosine"),
        (2.2, "linear", 6, "cosine"),
        (2.2, "constant", 25, "linear"),
        (0.6, "linear", 1, "cosine"),
    ],
)
def test_another_configuration_is_decoded_as_a_plain_definition_does(
    other, cfg, kind, num_iter, beta_schedule
):
    from csd.tools.bench.eager import EagerSampler

    model, reference, bundle = other
    # The exported graphs know nothing of betas: one bundle serves both schedules.
    config = dataclasses.replace(OTHER, beta_schedule=beta_schedule)
    manifest = dataclasses.replace(bundle.manifest, models={"target": config})
    model.config = reference.config = config
    labels, orders, initial, per_step = _other_inputs(13)
    expected, _ = reference.decode(
        *map(torch.from_numpy, (labels, orders, initial, per_step)),
        num_iter=num_iter, cfg=cfg, kind=kind, temperature=0.95,
    )  # fmt: skip
    options = GenerateOptions(
        mode="target",
        num_iter=num_iter,
        cfg=cfg,
        cfg_schedule=kind,
        temperature=0.95,
        head="sequential",
    )
    noise = FixedNoise(orders, initial, per_step)
    with Bundle(bundle.path, manifest).session() as session:
        result = session.generate(labels, options, noise=noise)  # in two calls, of 2 and 1 images
    assert_parity(result.tokens, expected, "tokens on ONNX Runtime")
    latents = unpatchified(expected.numpy(), 2, 3)
    assert_parity(result.latents, latents, "latents on ONNX Runtime")
    shown = np.rint((np.clip(result.latents, -1, 1) + 1) * 127.5).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(result.images, shown)
    eager = EagerSampler(model, threads=1).generate(labels, result.options, noise)
    assert_parity(eager, latents, "latents of PyTorch eager")


def test_annealed_head_steps_of_another_configuration_follow_the_plain_definition(other):
    model, reference, bundle = other
    model.config = reference.config = OTHER
    labels, orders, initial, per_step = _other_inputs(12)
    head_steps = [12, 10, 7, 4, 2]
    expected, _ = reference.decode(
        *map(torch.from_numpy, (labels, orders, initial, per_step)),
        num_iter=5, head_steps=head_steps,
    )  # fmt: skip
    options = GenerateOptions(mode="target", num_iter=5, head_steps=(12, 2), head="sequential")
    with bundle.session() as session:
        result = session.generate(labels, options, noise=FixedNoise(orders, initial, per_step))
    assert_parity(result.tokens, expected, "tokens")
    assert result.stats.head_evaluations["target"] == 2 * sum(head_steps)  # two calls


@every_mode
def test_one_seed_gives_the_same_images_in_any_batch(tiny_session, options):
    labels = [3, 1, 4, 1, 5, 9, 2, 10]
    together = tiny_session.generate(labels, options, seed=5)
    alone = [
        tiny_session.generate([label], options, seed=5, first_image=k, at_once=len(labels)).tokens[
            0
        ]
        for k, label in enumerate(labels)
    ]
    assert_parity(np.stack(alone), together.tokens, "tokens alone")
    assert np.abs(together.tokens[1] - together.tokens[3]).max() > 1  # one label, two images
    other = tiny_session.generate(labels, options, seed=6)
    assert np.abs(together.tokens - other.tokens).max(axis=(1, 2)).min() > 1


def test_more_images_than_a_bundle_takes_at_once_are_the_same_images(tiny_session):
    labels, options = (
        list(range(10)),
        GenerateOptions(mode="csd", gamma=2, num_iter=4, head_steps=4, head="sequential"),
    )
    together = tiny_session.generate(labels, options).tokens
    parts = [
        tiny_session.generate(labels[k : k + 5], options, first_image=k).tokens for k in (0, 5)
    ]
    assert_parity(np.concatenate(parts), together, "tokens in two parts")


@every_mode
def test_one_seed_gives_the_same_images_with_any_number_of_threads(tiny_bundle, options):
    made = []
    for threads in (1, 2):
        with Bundle.open(tiny_bundle).session(threads=threads) as session:
            made.append(session.generate([2, 7], options, seed=1).tokens)
    assert_parity(made[1], made[0], "tokens with two threads")


def test_a_run_does_not_depend_on_the_runs_before_it(tiny_session):
    options = EVERY_MODE["block"]
    first = tiny_session.generate([1], options, seed=1)
    tiny_session.generate([2, 3], EVERY_MODE["guided"], seed=2)
    again = tiny_session.generate([1], options, seed=1)
    np.testing.assert_array_equal(first.tokens, again.tokens)


def test_temperature_scales_the_noise(tiny_session, recorded, fixed):
    reference = Reference(
        tiny_config("target"), torch.load(DATA / "target.pth", weights_only=True)["model_ema"]
    )
    names = ("labels", "orders", "noise", "inter_noise")
    expected, _ = reference.decode(
        *(torch.from_numpy(recorded[name]) for name in names), num_iter=NUM_ITER, temperature=0.7
    )
    options = GenerateOptions(mode="target", num_iter=NUM_ITER, temperature=0.7, head="sequential")
    result = tiny_session.generate(recorded["labels"], options, noise=fixed)
    assert_parity(result.tokens, expected, "tokens")
    assert np.abs(result.tokens - recorded["ar_tokens_1.0_linear"]).max() > 10


@pytest.mark.parametrize("labels", [[], [-1], [11], [0, 99], [1.0], [[1]], "3", [True]])
def test_labels_that_do_not_fit_are_refused(tiny_session, labels):
    with pytest.raises(OptionError, match="label"):
        tiny_session.generate(labels, EVERY_MODE["target"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            GenerateOptions(mode="csd", gamma=33, head="sequential"),
            "gamma is 33: this bundle takes 1 to 32; export with --max-",
        ),
        (
            GenerateOptions(mode="csd", num_iter=17, head="sequential"),
            "num-iter is 17: give 1 to 16, the number of tokens",
        ),
    ],
)
def test_options_that_do_not_fit_the_bundle_are_refused(tiny_session, options, message):
    with pytest.raises(OptionError, match=message):
        tiny_session.generate([1], options)


def test_defaults_are_filled_in_and_reported(tiny_session):
    result = tiny_session.generate([1], GenerateOptions(mode="target", head="sequential"))
    assert (result.options.num_iter, result.options.head_steps) == (16, 20)


def test_noise_that_does_not_fit_the_run_is_refused(tiny_session, fixed, recorded):
    with pytest.raises(OptionError, match="for 3 images of 16 tokens: give it for 4 images"):
        tiny_session.generate([1, 2, 3, 4], EVERY_MODE["target"], noise=fixed)
    with pytest.raises(OptionError, match="20 head steps, the run has 21"):
        tiny_session.generate(
            [1], GenerateOptions(mode="target", head_steps=21, head="sequential"), noise=fixed
        )
    thin = FixedNoise(
        recorded["orders"], recorded["noise"][..., 1:], recorded["inter_noise"][..., 1:]
    )
    with pytest.raises(OptionError, match="15 channels, the model has 16"):
        tiny_session.generate([1], EVERY_MODE["target"], noise=thin)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("options", {"mode": "target"}), ("options", "target"), ("seed", 1.5), ("seed", "1"),
        ("seed", True), ("seed", None), ("noise", 3), ("noise", "fixed"), ("noise", SeededNoise),
        ("first_image", 1.0), ("first_image", "0"), ("first_image", -1), ("first_image", 2**63 - 1),
        ("progress", True), ("progress", "bar"),
    ],
)  # fmt: skip
def test_arguments_of_a_wrong_type_are_named_with_their_type(tiny_session, name, value):
    given = {"options": EVERY_MODE["target"], name: value}
    with pytest.raises(OptionError, match=rf"^{name} is .*: give ") as error:
        tiny_session.generate([1], **given)
    assert "\n" not in str(error.value)


def test_numpys_numbers_are_taken(tiny_session):
    options = GenerateOptions(mode="target", num_iter=np.int64(2), head_steps=np.int32(2))
    given = tiny_session.generate([np.int8(3)], options, seed=np.uint64(5), first_image=np.int16(2))
    plain = tiny_session.generate([3], options, seed=5, first_image=2)
    np.testing.assert_array_equal(given.tokens, plain.tokens)
    assert (given.labels, given.seed, given.first_image) == ((3,), 5, 2)
    assert {type(given.seed), type(given.first_image), type(given.labels[0])} == {int}
    json.dumps(given.to_dict())


def test_sessions_take_bundles_and_options(tiny_bundle):
    with pytest.raises(OptionError, match=r"^bundle is .* \(str\): give what Bundle.open returns"):
        Session("bundle")
    bundle = Bundle.open(tiny_bundle, verify_files="never")
    with pytest.raises(OptionError, match=r"^options is .* \(dict\): give BackendOptions"):
        Session(bundle, {"threads": 2})
    with pytest.raises(OptionError, match=r"^threads is 2.5 \(float\)"):
        bundle.session(threads=2.5)


def test_results_sessions_and_bundles_say_what_they_are(tiny_bundle, fixed):
    bundle = Bundle.open(tiny_bundle, verify_files="never")
    with bundle.session(threads=1) as session:
        options = GenerateOptions(mode="csd", num_iter=4, head_steps=3, gamma=2)
        result = session.generate([1, 2], options, seed=3)
        shown = [repr(value) for value in (bundle, session, result, result.stats, result.options)]
        other = session.generate([1], EVERY_MODE["target"], noise=fixed)
    for text, parts in zip(
        [*shown, repr(session)],
        [
            (str(tiny_bundle), "target and draft"), ("onnxruntime", "1 threads"),
            ("2 images, 8 x 8", "csd", "seed 3"), ("4 AR steps", "acceptance rate"),
            ("mode='csd'", "num_iter=4", "gamma=2"), ("closed",),
        ],
        strict=True,
    ):  # fmt: skip
        assert all(part in text for part in parts), text
        assert len(text) < 250
    assert "verify" not in shown[4]  # a default
    assert eval(shown[4], {"GenerateOptions": GenerateOptions}) == result.options
    assert "seed None" in repr(other)


def test_a_result_saves_itself(tiny_session, tmp_path):
    options = GenerateOptions(num_iter=2, head_steps=2)
    one, two = (tiny_session.generate([1] * count, options) for count in (1, 2))
    one.save(str(tmp_path / "one.png"))
    two.save(tmp_path / "two.png", columns=1, captions=True)
    with Image.open(tmp_path / "one.png") as image:
        np.testing.assert_array_equal(np.asarray(image), one.images[0])
    with Image.open(tmp_path / "two.png") as image:
        assert image.size == (12 * 14, 2 * (10 * 14 + 14) + 2 * 14)
    for name, call in {
        "columns": lambda: two.save(tmp_path / "x.png", columns=0),
        "path": lambda: two.save(3),
        "folder": lambda: two.save_each(None),
    }.items():
        with pytest.raises(OptionError, match=f"^{name} is "):
            call()
    assert not (tmp_path / "x.png").exists()


def test_latents_alone_cannot_be_saved_as_a_picture(make_bundle, tmp_path):
    folder = make_bundle(lambda values: values["graphs"].pop("decoder"))
    with Bundle.open(folder).session() as session:
        result = session.generate([1], GenerateOptions(num_iter=2, head_steps=2))
    assert "latents only" in repr(result)
    with pytest.raises(OptionError, match="no images to save"):
        result.save(tmp_path / "x.png")


@pytest.mark.parametrize(("mode", "said"), [("target", "head-steps"), ("csd", "gamma")])
def test_a_lack_of_memory_says_what_was_asked_for_and_what_to_lower(
    tiny_session, monkeypatch, mode, said
):
    def full(*_, **__):
        raise MemoryError("Unable to allocate 9.00 GiB for an array with shape (9,)")

    monkeypatch.setattr("csd.runtime.session.decode", full)
    options = GenerateOptions(mode=mode, num_iter=2, head_steps=2)
    with pytest.raises(BackendError) as error:
        tiny_session.generate([1, 2], options)
    text = str(error.value)
    assert "9.00 GiB" in text
    assert all(part in text for part in ("give fewer labels", "lower head-steps (2)", said))


def test_a_lack_of_memory_for_graphs_is_one_line(tiny_bundle, monkeypatch):
    def full(*args):
        raise MemoryError

    monkeypatch.setattr("csd.runtime.session.Session.graph", full)
    with pytest.raises(BackendError, match=r"^not enough memory: the graphs cannot be loaded"):
        Bundle.open(tiny_bundle, verify_files="never").session()


def test_tokens_that_are_not_finite_make_no_images(tiny_session, monkeypatch):
    def broken(part, *_, **__):
        part.tokens[0, 3] = np.inf
        yield from ()

    monkeypatch.setattr("csd.runtime.session.decode", broken)
    with pytest.raises(NumericsError, match="tokens are not finite: check the weights"):
        tiny_session.generate([1])
