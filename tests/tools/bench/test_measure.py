from __future__ import annotations

from contextlib import ExitStack
from types import SimpleNamespace

import numpy as np

from csd.runtime import Bundle, GenerateOptions
from csd.tools.bench.cases import Case
from csd.tools.bench.measure import Measurement, Runners, measure, measure_quality

from .test_baselines import only_eager


def test_a_bench_takes_the_device_time_of_the_runtime_and_of_eager(tiny_bundle):
    with Bundle.open(tiny_bundle).session() as session:
        ticks, generate = iter(range(1, 100)), session.generate

        def on_device(*args, **kwargs):
            result = generate(*args, **kwargs)
            result.stats.device_seconds = float(next(ticks))
            return result

        session.generate = on_device
        eager = only_eager(session.bundle)
        eager.device_seconds = 7.0
        options = GenerateOptions(mode="target", num_iter=2, head_steps=2, head="sequential")
        results = measure(
            Runners({2: session}, {("eager", 2): eager}),
            [Case("eager", options, "eager"), Case("target", options)],
            batch=1, repeats=2, seed=0, report=lambda _: None,
        )  # fmt: skip
    assert [result.device_seconds for result in results] == [[7.0, 7.0], [2.0, 3.0]]
    assert all(len(result.seconds) == len(result.others) == 2 for result in results)


def test_each_case_runs_at_its_own_thread_count_in_turn(tiny_bundle):
    options = GenerateOptions(mode="target", head="sequential", num_iter=2, head_steps=2)
    asked = []
    with ExitStack() as opened:
        sessions = {}
        for threads in (1, 2):
            session = opened.enter_context(Bundle.open(tiny_bundle).session(threads=threads))
            generate = session.generate
            session.generate = lambda *args, generate=generate, threads=threads, **kwargs: (
                asked.append((threads, kwargs["seed"])) or generate(*args, **kwargs)
            )
            sessions[threads] = session
        cases = [Case("one", options, threads=1), Case("two", options, threads=2)]
        measure(
            Runners(sessions, {}), cases,
            batch=1, repeats=2, warm_ups=0, seed=5, report=lambda _: None,
        )  # fmt: skip
    assert asked == [(1, 5), (2, 5), (1, 6), (2, 6)]


def test_the_images_of_options_are_judged_once(tiny_bundle):
    options = GenerateOptions(mode="target", head="sequential", num_iter=2, head_steps=2)
    results = [Measurement(Case(str(n), options, threads=n)) for n in (1, 2)]
    judged = []
    classifier = SimpleNamespace(accuracy=lambda images, labels: judged.append(labels) or 0.5)
    with Bundle.open(tiny_bundle).session() as session:
        session.generate = lambda labels, *_, **__: SimpleNamespace(
            latents=np.zeros((len(labels), 1, 2, 2), np.float32),
            stats=SimpleNamespace(acceptance_rate=None),
        )
        measure_quality(
            Runners({2: session}, {}), classifier, results,
            images=3, seed=0, report=lambda _: None,
        )  # fmt: skip
    assert judged == [[0, 1, 2]]
    assert [(result.accuracy, result.accuracy_images) for result in results] == [(0.5, 3)] * 2
