"""Threads that share a session."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from csd.runtime import Bundle, GenerateOptions, OptionError

from .conftest import LABELS, SEED, WAYS, Gate, MeddlingNoise, Worker

UNFINISHED = "^this thread has an unfinished stream of this session: finish it, call its cancel"
CLOSED = "the session is closed"
THREADS = 8


@pytest.fixture
def own(tiny_bundle):
    """A session that a test may close."""
    with Bundle.open(tiny_bundle).session(threads=1) as session:
        yield session


def generated(session, way="target"):
    return session.generate(LABELS, WAYS[way], seed=SEED)


def held_in_a_step(session, gate, way="target"):
    """A thread that generates, and is held by a gate in the middle of a step."""
    worker = Worker(
        lambda: session.generate(LABELS, WAYS[way], noise=MeddlingNoise(3, gate)).tokens
    )
    assert gate.reached.wait(60)
    return worker


def held_stream(session, gate):
    """A stream, and a thread that takes its events and is held in the middle of a step."""
    stream = session.stream(LABELS, WAYS["target"], noise=MeddlingNoise(3, gate))
    worker = Worker(lambda: list(stream))
    assert gate.reached.wait(60)
    return stream, worker


def test_threads_generate_what_one_alone_does(session, wanted):
    ways = [*WAYS, "target", "block"]

    def work(way):
        made = []
        for turn in range(3):
            if turn % 2:
                made.append(generated(session, way).tokens)
            else:
                with session.stream(LABELS, WAYS[way], seed=SEED) as stream:
                    list(stream)
                made.append(stream.result.tokens)
        return made

    workers = [Worker(lambda way=way: work(way)) for way in ways]
    assert len(workers) == THREADS
    for way, worker in zip(ways, workers, strict=True):
        for tokens in worker.done():
            np.testing.assert_array_equal(tokens, wanted[way].tokens)


def test_other_threads_wait_for_a_stream(session, wanted):
    stream = session.stream(LABELS, WAYS["block"], seed=SEED)
    events = [next(stream)]
    worker = Worker(lambda: generated(session).tokens)
    worker.join(0.2)
    assert worker.is_alive()
    events += stream
    np.testing.assert_array_equal(worker.done(), wanted["target"].tokens)
    np.testing.assert_array_equal(stream.result.tokens, wanted["block"].tokens)


def test_other_threads_wait_for_a_generate(session, wanted):
    gate = Gate()
    worker = held_in_a_step(session, gate)
    other = Worker(lambda: generated(session, "block").tokens)
    other.join(0.2)
    assert other.is_alive()
    gate.opened.set()
    np.testing.assert_array_equal(worker.done(), wanted["target"].tokens)
    np.testing.assert_array_equal(other.done(), wanted["block"].tokens)


def test_a_thread_within_a_stream_is_refused_other_runs(session, wanted):
    with session.stream(LABELS, WAYS["block"], seed=SEED) as stream:
        next(stream)
        with pytest.raises(OptionError, match=UNFINISHED) as error:
            generated(session)
        assert "\n" not in str(error.value)
        other = session.stream(LABELS, WAYS["target"], seed=SEED)
        with pytest.raises(OptionError, match=UNFINISHED):
            next(other)
        list(stream)
        np.testing.assert_array_equal(stream.result.tokens, wanted["block"].tokens)
        list(other)  # it was refused its turn, and is none the worse
        np.testing.assert_array_equal(other.result.tokens, wanted["target"].tokens)
    with session.stream(LABELS, WAYS["block"]) as stream:
        next(stream)
        stream.cancel()
        generated(session)


def test_a_progress_callback_is_refused_a_run(session):
    with pytest.raises(OptionError, match=UNFINISHED):
        session.generate([1], WAYS["target"], progress=lambda _: generated(session))
    generated(session)


def test_threads_in_turn_may_advance_one_stream(session, wanted):
    stream = session.stream(LABELS, WAYS["block"], seed=SEED)
    events = []
    while (event := Worker(lambda: next(stream, None)).done()) is not None:
        events.append(event)
    np.testing.assert_array_equal(stream.result.tokens, wanted["block"].tokens)
    assert events[-1].progress.done == 8
    generated(session)


def test_threads_at_once_get_each_event_once(session, wanted):
    stream = session.stream(LABELS, WAYS["block"], seed=SEED)
    workers = [Worker(lambda: [event.positions for event in stream]) for _ in range(4)]
    got = [positions for worker in workers for positions in worker.done()]
    assert len(got) == len(list(session.stream(LABELS, WAYS["block"], seed=SEED)))
    np.testing.assert_array_equal(stream.result.tokens, wanted["block"].tokens)


def test_a_cancel_from_another_thread_ends_the_loop_after_its_step(session, wanted):
    gate = Gate()
    stream, worker = held_stream(session, gate)
    stream.cancel()  # returns though the step goes on
    other = Worker(lambda: generated(session).tokens)
    other.join(0.1)
    assert other.is_alive()
    gate.opened.set()
    assert len(worker.done()) <= 3
    np.testing.assert_array_equal(other.done(), wanted["target"].tokens)
    with pytest.raises(OptionError, match="was cancelled"):
        _ = stream.result


def test_a_cancel_within_a_step_ends_the_run_after_it(session, wanted):
    found = []
    noise = MeddlingNoise(3, lambda: found[0].cancel())
    found.append(session.stream(LABELS, WAYS["target"], noise=noise))
    assert len(list(found[0])) == 3
    np.testing.assert_array_equal(generated(session).tokens, wanted["target"].tokens)


def test_a_stream_that_waits_for_its_turn_can_be_cancelled(session):
    with session.stream(LABELS, WAYS["block"]) as stream:
        next(stream)
        waiting = session.stream(LABELS, WAYS["target"])
        worker = Worker(lambda: list(waiting))
        worker.join(0.1)
        assert worker.is_alive()
        waiting.cancel()
        assert worker.done() == []
        assert next(stream) is not None


def test_images_of_an_event_are_had_from_any_thread(session, wanted):
    with session.stream(LABELS, WAYS["block"], seed=SEED) as stream:
        events = [next(stream) for _ in range(3)]
        shown = [event.images() for event in events]
        for event, image in zip(events, shown, strict=True):
            np.testing.assert_array_equal(Worker(event.images).done(), image)
        workers = [Worker(event.images) for event in events]
        list(stream)
    for worker, image in zip(workers, shown, strict=True):
        np.testing.assert_array_equal(worker.done(), image)
    np.testing.assert_array_equal(stream.result.tokens, wanted["block"].tokens)


def test_closing_waits_for_a_generate_and_refuses_who_waits(own, wanted):
    gate = Gate()
    worker = held_in_a_step(own, gate)
    waiting = Worker(lambda: generated(own))
    closing = Worker(own.close)
    with pytest.raises(OptionError, match=CLOSED):
        waiting.done()
    assert closing.is_alive()
    gate.opened.set()
    np.testing.assert_array_equal(worker.done(), wanted["target"].tokens)
    closing.done()
    with pytest.raises(OptionError, match=CLOSED):
        generated(own)


def test_closing_cancels_a_stream_of_another_thread_and_waits_for_its_step(own):
    gate = Gate()
    stream, worker = held_stream(own, gate)
    closing = Worker(own.close)
    closing.join(0.1)
    assert closing.is_alive()
    gate.opened.set()
    assert len(worker.done()) <= 3
    closing.done()
    with pytest.raises(OptionError, match="was cancelled"):
        _ = stream.result


def test_closing_cancels_a_stream_that_nobody_advances(own):
    stream = own.stream(LABELS, WAYS["target"])
    event = Worker(lambda: next(stream)).done()
    later = own.stream(LABELS, WAYS["target"])
    own.close()
    own.close()
    assert list(stream) == []
    for call in (lambda: next(later), event.images, lambda: own.stream([1])):
        with pytest.raises(OptionError, match=CLOSED):
            call()


def test_a_progress_callback_that_closes_ends_its_run(own):
    with pytest.raises(OptionError, match="cancelled"):
        own.generate([1], WAYS["target"], progress=lambda _: own.close())
    with pytest.raises(OptionError, match=CLOSED):
        generated(own)


def test_graphs_that_are_opened_late_are_opened_once(local_bundle):
    start = threading.Barrier(THREADS)
    with Bundle.open(local_bundle).session(threads=1) as session:

        def open_graph():
            start.wait()
            return session.graph("target.backbone_local")

        workers = [Worker(open_graph) for _ in range(THREADS)]
        assert len({id(worker.done()) for worker in workers}) == 1


def test_backbones_of_local_steps_are_made_once_for_all_threads(local_bundle):
    options = GenerateOptions(num_iter=6, head_steps=4, refresh=2)
    with Bundle.open(local_bundle).session(threads=1) as session:
        expected = session.generate(LABELS, options, seed=SEED).tokens
    with Bundle.open(local_bundle).session(threads=1) as session:
        work = lambda: session.generate(LABELS, options, seed=SEED).tokens  # noqa: E731
        for worker in [Worker(work) for _ in range(THREADS)]:
            np.testing.assert_array_equal(worker.done(), expected)


def test_threads_with_sessions_of_one_bundle_do_not_disturb_each_other(
    tiny_bundle, wanted, monkeypatch, tmp_path
):
    monkeypatch.setenv("CSD_CACHE_DIR", str(tmp_path))  # hashes are remembered by all of them
    bundle = Bundle.open(tiny_bundle)

    def work():
        with bundle.session(threads=1) as session:
            return generated(session, "block").tokens

    for worker in [Worker(work) for _ in range(4)]:
        np.testing.assert_array_equal(worker.done(), wanted["block"].tokens)
