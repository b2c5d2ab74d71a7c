from __future__ import annotations

import gc
import os
import signal
import threading
import time
import weakref

import numpy as np
import pytest

from csd.runtime import Bundle, GenerateOptions, NumericsError, OptionError, SeededNoise
from csd.runtime.images import to_uint8
from csd.runtime.session import Session

from .conftest import LABELS, SEED, WAYS, MeddlingNoise, every_way

LENGTH = 16  # tokens of the tiny model


def assert_as_fresh(session, wanted, *ways):
    """The session is free, and generates what a fresh one does."""
    for way in ways or WAYS:
        made = session.generate(LABELS, WAYS[way], seed=SEED)
        np.testing.assert_array_equal(made.tokens, wanted[way].tokens)
        np.testing.assert_array_equal(made.images, wanted[way].images)


@every_way
def test_a_stream_ends_with_what_generate_returns(session, wanted, way):
    stream = session.stream(LABELS, WAYS[way], seed=SEED)
    events = list(stream)
    expected = wanted[way]
    np.testing.assert_array_equal(stream.result.tokens, expected.tokens)
    np.testing.assert_array_equal(stream.result.images, expected.images)
    for name in ("ar_steps", "drafted", "accepted", "resampled", "dropped", "head_rows"):
        assert getattr(stream.result.stats, name) == getattr(expected.stats, name)
    assert (stream.result.labels, stream.result.seed) == (tuple(LABELS), SEED)
    last = events[-1].progress
    assert last.done == last.total == expected.options.num_iter * (3 if way == "prefix" else 1)
    assert list(stream) == []


class JudgedNoise(SeededNoise):
    """Noise of a seed with which some drafted tokens are accepted, and some are not."""

    def accept(self, images, positions):
        return np.where((images + positions) % 5 == 0, np.nextafter(1.0, 0.0), 0.0)


@every_way
def test_events_say_what_happened_to_each_token(session, way):
    stream = session.stream(LABELS, WAYS[way], noise=JudgedNoise(SEED))
    events = list(stream)
    csd = WAYS[way].mode == "csd"
    assert {event.kind for event in events} == (
        {"decoded", "drafted", "verified"} if csd else {"decoded"}
    )
    tokens, known, pending = (
        np.zeros((3, LENGTH, 16), np.float32), *np.zeros((2, 3, LENGTH), np.bool_)
    )  # fmt: skip
    counts = dict.fromkeys(("accepted", "resampled", "dropped"), 0)
    done = 0
    for event in events:
        rows = np.array(event.indices)[:, None]
        now, positions = event.tokens, event.positions
        assert positions.shape[0] == len(event.indices)
        put = np.take_along_axis(now, positions[..., None], axis=1)
        before = tokens[rows, positions]
        verdicts = [event.accepted, event.resampled, event.dropped]
        if event.kind == "verified":
            np.testing.assert_array_equal(sum(v.astype(int) for v in verdicts), 1)
            assert pending[rows, positions].all()
            np.testing.assert_array_equal(put[event.accepted], before[event.accepted])
            changed = (put != before).any(axis=-1)
            assert changed[event.resampled].all()
            known[rows, positions], pending[rows, positions] = ~event.dropped, False
            put = np.where(event.dropped[..., None], np.float32(0), put)
            for name in counts:
                counts[name] += int(getattr(event, name).sum())
        else:
            assert not any(verdict.any() for verdict in verdicts)
            assert not known[rows, positions].any()
            known[rows, positions], pending[rows, positions] = True, event.kind == "drafted"
        tokens[rows, positions] = put
        np.testing.assert_array_equal(now, tokens[event.indices])
        np.testing.assert_array_equal(event.known, known[event.indices])
        np.testing.assert_array_equal(event.pending, pending[event.indices])
        assert (event.progress.done == done) == (event.kind == "drafted")
        done = event.progress.done
    np.testing.assert_array_equal(tokens, stream.result.tokens)
    stats = stream.result.stats
    assert counts == {name: getattr(stats, name) for name in counts}
    if csd:
        assert min(counts["accepted"], counts["resampled"]) > 0
    assert (counts["dropped"] > 0) == (way == "prefix")


def test_more_images_than_are_decoded_at_once_come_part_after_part(session):
    labels = [k % 10 for k in range(11)]
    most = session.bundle.manifest.max_batch
    with session.stream(labels, WAYS["target"]) as stream:
        seen = [event.indices for event in stream]
    assert seen == [*[range(most)] * 6, *[range(most, 11)] * 6]
    assert stream.result.stats.ar_steps == 12


@every_way
def test_images_of_an_event_are_decoded_from_what_is_known(session, wanted, way):
    decoder = session.graph("decoder")
    config = session.bundle.manifest.target
    with session.stream(LABELS, WAYS[way], seed=SEED) as stream:
        final = {}
        for event in stream:
            side = config.img_size // config.vae_stride
            grid = event.tokens.reshape(-1, side, side, config.vae_embed_dim).transpose(0, 3, 1, 2)
            image = decoder.run({"latents": np.ascontiguousarray(grid)})["image"]
            np.testing.assert_array_equal(event.images(), to_uint8(image))
            final.update(zip(event.indices, event.images(), strict=True))
    np.testing.assert_array_equal(stream.result.tokens, wanted[way].tokens)
    for index, image in enumerate(stream.result.images):
        assert np.abs(final[index].astype(int) - image).max() <= 1


def test_images_are_decoded_only_where_they_are_asked_for(session, monkeypatch):
    calls, decode = [], Session._decode

    def counted(self, latents):
        calls.append(len(latents))
        return decode(self, latents)

    monkeypatch.setattr(Session, "_decode", counted)
    with session.stream(LABELS, WAYS["target"]) as stream:
        events = list(stream)
    assert calls == [3]
    events[2].images()
    assert calls == [3, 3]


def test_an_event_stays_as_it_was(session):
    with session.stream(LABELS, WAYS["block"], seed=SEED) as stream:
        events, seen = [], []
        for event in stream:
            events.append(event)
            seen.append((event.tokens, event.known, event.images(), repr(event)))
    for event, (tokens, known, images, text) in zip(events, seen, strict=True):
        np.testing.assert_array_equal(event.tokens, tokens)
        np.testing.assert_array_equal(event.known, known)
        np.testing.assert_array_equal(event.images(), images)
        assert repr(event) == text
    assert "drafted" in seen[1][-1]
    assert "of 8 AR steps" in seen[1][-1]


@every_way
@pytest.mark.parametrize("events", [0, 1, 4])
def test_after_a_cancel_the_session_is_as_a_fresh_one(session, wanted, way, events):
    stream = session.stream(LABELS, WAYS[way], seed=9)
    for _ in range(events):
        next(stream)
    stream.cancel()
    stream.cancel()
    assert list(stream) == []
    with pytest.raises(OptionError, match="no result: it was cancelled, so make another one"):
        _ = stream.result
    assert_as_fresh(session, wanted, way)


def test_leaving_the_block_cancels(session, wanted):
    def fail(stream):
        with stream:
            for event in stream:
                if event.kind == "drafted":
                    raise ZeroDivisionError

    with session.stream(LABELS, WAYS["block"], seed=9) as stream:
        next(stream)
    assert list(stream) == []
    with pytest.raises(ZeroDivisionError):
        fail(session.stream(LABELS, WAYS["block"], seed=9))
    assert_as_fresh(session, wanted)


def test_dropping_the_stream_cancels_though_an_event_is_kept(session, wanted):
    for event in session.stream(LABELS, WAYS["block"], seed=9):
        if event.kind == "drafted":
            break
    assert_as_fresh(session, wanted, "block")
    assert event.images().shape[0] == 3
    stream = session.stream(LABELS, WAYS["block"], seed=9)
    next(stream)
    del stream
    assert_as_fresh(session, wanted, "target")


def test_a_stream_that_was_never_asked_holds_nothing(session, wanted):
    first, second = (session.stream(LABELS, WAYS["target"], seed=SEED) for _ in range(2))
    assert_as_fresh(session, wanted, "target")
    list(second)
    np.testing.assert_array_equal(second.result.tokens, wanted["target"].tokens)
    assert "unfinished" in repr(first)
    assert "finished" in repr(second)


def test_what_a_run_holds_is_freed_by_a_cancel(session):
    noise = MeddlingNoise(-1, lambda: None)
    held = weakref.ref(noise)
    stream = session.stream(LABELS, WAYS["block"], noise=noise)
    event = next(stream)
    attempt = stream._run._steps.gi_yieldfrom
    canvas = weakref.ref(attempt.gi_frame.f_locals["canvas"])
    del attempt
    del noise
    assert held() is not None
    assert canvas() is not None
    stream.cancel()
    gc.collect()
    assert held() is canvas() is None
    assert event.tokens.any()


@pytest.mark.parametrize("way", ["target", "block", "prefix"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, ZeroDivisionError])
@pytest.mark.parametrize("streamed", [False, True])
def test_after_an_error_within_a_step_the_session_is_as_a_fresh_one(
    session, wanted, way, error, streamed
):
    def fail():
        raise error

    noise = MeddlingNoise(4, fail)
    expected = Exception if error is MemoryError else error  # which is explained
    if streamed:
        stream = session.stream(LABELS, WAYS[way], noise=noise)
        with pytest.raises(expected):
            list(stream)
        with pytest.raises(OptionError, match="it has failed, so make another one"):
            _ = stream.result
        assert list(stream) == []
    else:
        with pytest.raises(expected):
            session.generate(LABELS, WAYS[way], noise=noise)
    assert_as_fresh(session, wanted, way)


def test_after_an_error_of_a_progress_callback_the_session_is_as_a_fresh_one(session, wanted):
    def fail(progress):
        if progress.done > 3:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        session.generate(LABELS, WAYS["block"], progress=fail)
    assert_as_fresh(session, wanted, "block")


@pytest.mark.parametrize("after", [0.003, 0.02, 0.05, 0.09])
def test_after_ctrl_c_the_session_is_as_a_fresh_one(session, wanted, after):
    """The signal comes anywhere: in a step, between two, where a turn is taken or given back."""
    options = GenerateOptions(num_iter=2, head_steps=1)

    def work():
        timer.start()
        for _ in range(10_000):
            session.generate([1], options)
            list(session.stream([1], options))

    timer = threading.Timer(after, os.kill, (os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        work()
    timer.join()
    assert_as_fresh(session, wanted, "target", "block")


def test_a_network_that_fails_fails_the_stream(session, monkeypatch):
    def broken(*_, **__):
        yield from ()
        raise NumericsError("target.backbone returned nan")

    monkeypatch.setattr("csd.runtime.session.decode", broken)
    stream = session.stream([1])
    with pytest.raises(NumericsError, match="returned nan"):
        next(stream)
    monkeypatch.undo()
    session.generate([1], WAYS["target"])


def test_a_result_is_there_once_all_events_were_had(session):
    with session.stream([1], WAYS["target"]) as stream:
        for _ in range(6):
            event = next(stream)
            with pytest.raises(OptionError, match="unfinished, so take all its events first"):
                _ = stream.result
        assert event.progress.done == event.progress.total
        assert next(stream, None) is None
        assert stream.result is stream.result
    assert stream.result.images.shape[0] == 1  # leaving cancels what is not finished only


@pytest.mark.parametrize(
    ("name", "value"),
    [("labels", [99]), ("options", "target"), ("seed", "1"), ("noise", 3), ("first_image", -1),
     ("at_once", 0)],
)  # fmt: skip
def test_arguments_are_refused_before_the_first_event(session, name, value):
    given = {"labels": [1], name: value}
    with pytest.raises(OptionError, match=name.rstrip("s")):
        session.stream(**given)


def test_seconds_are_those_of_the_run(session):
    with session.stream([1], WAYS["target"]) as stream:
        for _ in stream:
            time.sleep(0.1)
    assert 0 < stream.result.stats.seconds < 0.5


def test_noise_of_a_seed_and_first_image_are_taken(session, wanted):
    options = WAYS["target"]
    with session.stream([4], options, noise=SeededNoise(SEED), first_image=2, at_once=3) as stream:
        list(stream)
    np.testing.assert_allclose(
        stream.result.tokens[0], wanted["target"].tokens[2], rtol=1e-4, atol=1e-4
    )


def test_a_bundle_without_a_decoder_streams_tokens(make_bundle):
    folder = make_bundle(lambda values: values["graphs"].pop("decoder"))
    with Bundle.open(folder).session() as bare, bare.stream([1], WAYS["target"]) as stream:
        assert next(stream).images().shape == (1, 0, 0, 3)
