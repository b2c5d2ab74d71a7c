"""A session: the loaded graphs of a bundle, `generate` and `stream`."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from . import arrays
from .arguments import instance_of, whole_number_from, wrong_type
from .backends import Backend, BackendOptions, Graph, GraphDemand, create_backend, fallback
from .bundle.bundle import Bundle
from .bundle.graph_tensors import LOCAL_GRAPHS, MODEL_GRAPHS
from .bundle.manifest import local_graphs, needed_graphs
from .bundle.manifest_checks import MAX_GAMMA
from .command.line.logs import logger
from .command.memory_errors import memory_explained
from .command.text import plain, shown
from .decoding.change import Change
from .decoding.demand import largest_calls
from .decoding.loop import decode
from .decoding.model import RuntimeModel
from .decoding.plan import Canvas, Plan
from .decoding.refresh.backbone import CachedBackbone
from .errors import BackendError, BundleError, NumericsError, OptionError
from .images import to_uint8
from .labels import resolve_labels
from .noise import Noise, SeededNoise
from .options import CHAIN_HEADS, SOLVER, GenerateOptions
from .origin import Origin, host_library
from .result import GenerateResult
from .stats import Progress, ProgressCallback, Stats
from .streaming.event import StreamEvent
from .streaming.stream import Steps, Stream
from .streaming.turns import Turns
from .streaming.watch import Watch
from .version import version

_LOG = logger(__name__)
# Images of a seed are numbered in 63 bits.
MOST_IMAGES = 2**63 - 1

Labels = Sequence[int | str] | NDArray[Any]


class Session:
    """Loaded graphs. Get one with `Bundle.session`, use it as a context manager.

    A session does one run at a time, and any thread may ask for one: calls from other threads wait
    their turn. A thread that is in the middle of a stream would wait for itself, so its other calls
    are refused until the stream is finished, cancelled or left. A call that was interrupted (by an
    error, by Ctrl-C) leaves the session as it was. Where backend `auto` was asked for and the one
    that was taken fails in the middle of a run, the session goes over to the next one that runs
    here, with a warning, and begins the run again.

    Raises:
        BackendError: the backend is not installed or cannot load a graph.
        OptionError: an argument is of another type.
    """

    def __init__(self, bundle: Bundle, options: BackendOptions | None = None) -> None:
        self.bundle = instance_of("bundle", bundle, Bundle, "what Bundle.open returns")
        options = BackendOptions() if options is None else options
        self._options = instance_of("options", options, BackendOptions, "BackendOptions(...)")
        for graph in needed_graphs(bundle.manifest):
            self._require(graph)
        _reserve_products()
        self._backend = create_backend(bundle.path, bundle.manifest, options, bundle.check)
        self._turns = Turns()
        self._models: dict[str, RuntimeModel] = {}
        self._cached: dict[str, CachedBackbone] = {}  # made when they are first asked for
        try:
            self._load()
        except BaseException:
            self.close()
            raise

    def _load(self) -> None:
        """Open the graphs that every run needs."""
        manifest = self.bundle.manifest
        with memory_explained("the graphs cannot be loaded", "give --threads 1"):
            self._models = {role: self._load_model(role) for role in manifest.models}
            self._decoder = self.graph("decoder") if "decoder" in manifest.every_graph else None
        self._origin = self._describe()

    def _fall_back(self, error: BackendError) -> bool:
        """Go over to the next backend of `auto`, if one runs here; else all stays as it is."""
        bundle, failed = self.bundle, self._backend
        backend = fallback(failed.name, bundle.path, bundle.manifest, self._options, bundle.check)
        if backend is None:
            return False
        before = self._models, self._decoder, self._origin
        self._backend = backend
        try:
            self._load()
        except BaseException as other:
            self._backend, (self._models, self._decoder, self._origin) = failed, before
            backend.close()
            if isinstance(other, BackendError):
                return False
            raise
        _LOG.warning(
            "backend %s failed, and the run is begun again on %s: %s", failed.name, backend.name,
            plain(str(error)),
        )  # fmt: skip
        self._cached.clear()
        failed.close()
        return True

    def _require(self, graph: str) -> None:
        if graph not in self.bundle.manifest.every_graph:
            raise BundleError(
                f"bundle {self.bundle.path} has no graph {graph}: export it again with csd-export"
            )

    def graph(self, name: str, *, lasting: bool = False) -> Graph:
        """Open a graph of the bundle, those included that decoding does not use (`ops.accept`).

        Args:
            name: of the graph.
            lasting: see `Backend.open`.

        Raises:
            BundleError: the bundle has no such graph.
            BackendError: it cannot be loaded here.
        """
        self._require(name)
        config = self.bundle.manifest.models.get(name.split(".")[0])
        # Positions that a backend adds to `visible` are none of an image's (see `model`).
        padding = {} if config is None else {"visible": config.seq_len}
        with self._turns.working:
            return self._backend.open(name, padding, lasting=lasting)

    @property
    def backend(self) -> Backend:
        """What runs the graphs."""
        return self._backend

    @property
    def origin(self) -> Origin:
        """Which bundle this is, and what it runs on."""
        return self._origin

    def _describe(self) -> Origin:
        manifest = self.bundle.manifest
        return Origin(
            bundle=self.bundle.identity(),
            class_names=None if manifest.class_names is None else tuple(manifest.class_names),
            backend=self._backend.name,
            threads=self._options.threads,
            host_library=host_library(),
            versions=self.versions(),
        )

    def __repr__(self) -> str:
        if not self._models:
            return f"<Session of {self.bundle.manifest.name}, closed>"
        return (
            f"<Session of {self.bundle.manifest.name} on {self._backend.name}, "
            f"{self._options.threads} threads, models {', '.join(self._models)}>"
        )

    def _load_model(self, role: str) -> RuntimeModel:
        graphs = {name: self.graph(f"{role}.{name}") for name in MODEL_GRAPHS}
        return RuntimeModel(
            role,
            self.bundle.manifest.models[role],
            graphs,
            self.bundle.head_calibration(role),
            self._backend.head_rounds(f"{role}.head_step"),
        )

    def _cached_backbones(self, options: GenerateOptions) -> dict[str, CachedBackbone]:
        """The backbones of local AR steps, by role, where the options ask for them."""
        if not options.has_local_steps:
            return {}
        for role in options.roles:
            if role not in self._cached:
                # What a full step keeps is read by local ones, whatever other graphs keep.
                full, local = (
                    self.graph(f"{role}.{name}", lasting=name == "backbone_full")
                    for name in LOCAL_GRAPHS
                )
                config = self.bundle.manifest.models[role]
                self._cached[role] = CachedBackbone(role, config, full, local)
        return {role: self._cached[role] for role in options.roles}

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the graphs, when no run is going on any more.

        A `generate` of another thread is waited for. An unfinished stream is cancelled, whichever
        thread it is in, and its AR step waited for. Calls that wait for their turn are refused.
        """
        self._turns.close()
        with self._turns.working:
            self._models.clear()
            self._cached.clear()
            self._decoder = None
            self._backend.close()

    def model(self, role: str) -> RuntimeModel:
        """Return the loaded `target` or `draft`.

        Raises:
            OptionError: the bundle has no such model, or the session is closed.
        """
        if role not in self._models:
            raise OptionError(
                f"this session has no {role}: open one of a bundle exported with --{role}"
            )
        return self._models[role]

    def keep_backend(self) -> None:
        """Have a backend that fails end its run, as if it had been asked for by name.

        For figures that must all be of one backend.
        """
        self._options = replace(self._options, backend=self._backend.name)

    def versions(self) -> dict[str, str]:
        """Versions of csd, Python, NumPy and the backend's library."""
        return {
            "csd": version(),
            "python": platform.python_version(),
            "numpy": np.__version__,
            **self._backend.versions(),
        }

    def generate(
        self,
        labels: Labels,
        options: GenerateOptions | None = None,
        *,
        seed: int = 0,
        noise: Noise | None = None,
        first_image: int = 0,
        at_once: int | None = None,
        progress: ProgressCallback | None = None,
    ) -> GenerateResult:
        """Generate one image for each label. Other threads' calls wait until it is done.

        Args:
            labels: `[B]` class indices, names, or both; the number of classes means unconditional.
            options: what to do; the defaults are those of `GenerateOptions`.
            seed: seed of all noise, unless `noise` is given.
            noise: noise to use in place of the seed's.
            first_image: number of the first image. Image k of a seed is the same image whatever
                the batch it is generated in, with any head but `auto`.
            at_once: images that `auto` chooses for, where more are to come than these: it is the
                same image in every batch for which that is the same. Those of this call else.
            progress: called after AR steps, in this thread.

        Raises:
            OptionError: an argument is of another type, an option or label does not fit the
                bundle, this thread has an unfinished stream of the session, or the session is
                closed.
            BackendError: there is too little memory, or the backend failed.
            NumericsError: a network returned a value that is not finite; it names graph and step.
        """
        if progress is not None and not callable(progress):
            raise wrong_type("progress", progress, "a function that takes a Progress")
        given = labels, options, seed, noise, first_image, at_once
        with Stream(self._turns, self._checked_run(*given), awaited=True) as stream:
            for event in stream:
                if progress is not None and event.kind != "drafted":
                    progress(event.progress)
            return stream.result

    def stream(
        self,
        labels: Labels,
        options: GenerateOptions | None = None,
        *,
        seed: int = 0,
        noise: Noise | None = None,
        first_image: int = 0,
        at_once: int | None = None,
    ) -> Stream:
        """Generate as `generate` does, AR step after AR step: the same images, and the same errors.

        Returns:
            An iterator over the run's events, which waits for its turn at the first of them and
            holds the session until the last. Use it as a context manager; its `result` is what
            `generate` returns. Seconds in the result's statistics are those of the run, without
            those that its consumer took.

        Raises:
            OptionError: as for `generate`; a stream that is refused its turn says so when it is
                asked for its first event.
        """
        return Stream(
            self._turns, self._checked_run(labels, options, seed, noise, first_image, at_once)
        )

    def _checked_run(
        self,
        labels: Labels,
        options: GenerateOptions | None,
        seed: int,
        noise: Noise | None,
        first_image: int,
        at_once: int | None,
    ) -> Steps:
        """Check what `generate` and `stream` were given; returns the run, not yet begun."""
        self._turns.check_open()
        manifest, config = self.bundle.manifest, self.bundle.manifest.target
        options = GenerateOptions() if options is None else options
        instance_of("options", options, GenerateOptions, "GenerateOptions(...)")
        options = options.resolved(config, manifest.head_steps)
        wanted = self.check(labels, options)
        source = SeededNoise(seed) if noise is None else _checked_noise(noise)
        first_image = whole_number_from("first_image", first_image, 0, MOST_IMAGES - len(wanted))
        if at_once is not None:
            at_once = whole_number_from("at_once", at_once, 1, MOST_IMAGES)
        return self._run(wanted, options, source, first_image, at_once or 1)

    def _run(
        self,
        wanted: NDArray[np.int64],
        options: GenerateOptions,
        source: Noise,
        first_image: int,
        at_once: int,
    ) -> Steps:
        """A run on the backend there is; where that fails, again on the next one of `auto`."""
        again = False
        while True:
            try:
                return (
                    yield from self._attempt(
                        wanted, options, source, first_image, at_once, again=again
                    )
                )
            except BackendError as error:
                if not self._fall_back(error):
                    raise
                again = True

    def _attempt(
        self,
        wanted: NDArray[np.int64],
        options: GenerateOptions,
        source: Noise,
        first_image: int,
        at_once: int,
        *,
        again: bool,
    ) -> Steps:
        with memory_explained("images cannot be generated", _less_memory(len(wanted), options)):
            config = self.bundle.manifest.target
            plan = Plan.of(options, config.seq_len)
            stats = Stats(plan.schedule.num_iter)
            cached = self._cached_backbones(options)  # opened once, before the watch, as all graphs
            watch = Watch(self._backend)
            numbers = np.arange(first_image, first_image + len(wanted), dtype=np.int64)
            canvas = Canvas.blank(config, source, wanted, numbers)
            # Under prefix verification each image accepts its own number of AR steps.
            alone = options.mode == "csd" and options.verify == "prefix"
            most = 1 if alone else self.bundle.manifest.max_batch
            most_tokens, size = self._prepare(plan, min(most, len(canvas)), cached)
            parts = canvas.split(size)
            _LOG.info("%d images in %d parts of at most %d", len(canvas), len(parts), size)
            at_once = max(len(parts[0]), min(most, at_once))
            total = len(parts) * plan.num_iter
            if again:
                event = StreamEvent.of(
                    Change.restarted(len(canvas)), canvas, plan, indices=range(len(canvas)),
                    progress=Progress.of(stats, 0, total), render=self._render,
                )  # fmt: skip
                with watch.paused():
                    yield event
            for number, part in enumerate(parts):
                indices = range(number * size, number * size + len(part))
                changes = decode(
                    part, self._models, plan, source, stats, at_once=at_once,
                    most_tokens=most_tokens, cached=cached,
                )  # fmt: skip
                for change in changes:
                    done = Progress.of(stats, number * plan.num_iter + change.settled, total)
                    event = StreamEvent.of(
                        change, part, plan, indices=indices, progress=done, render=self._render
                    )
                    with watch.paused():
                        yield event

            if not np.isfinite(canvas.tokens).all():  # a draw of a last step that is too wide
                raise NumericsError(
                    "tokens are not finite: check the weights, or lower temperature or cfg"
                )
            latents = self._latents(canvas.tokens)
            with stats.timed("decoder"):
                images = to_uint8(self._decode(latents))
            stats.seconds, stats.device_seconds = watch.stop()
            stats.device_memory_peak = self._backend.device_memory
            return GenerateResult(
                images=images, latents=latents, tokens=canvas.tokens, stats=stats, options=options,
                labels=tuple(wanted.tolist()),
                seed=source.seed if isinstance(source, SeededNoise) else None,
                first_image=first_image, origin=self._origin,
            )  # fmt: skip

    def _prepare(
        self, plan: Plan, batch: int, cached: Mapping[str, CachedBackbone]
    ) -> tuple[dict[str, int], int]:
        """Plan the memory of a run.

        Returns:
            The rows of z that a model may take at once, and the images to decode at once: fewer
            than `batch` where what full AR steps keep of so many does not fit.
        """
        demand = largest_calls(plan, batch, self._models, local=bool(cached))
        if self._decoder is not None:
            images = min(self.bundle.manifest.max_batch, batch)
            demand["decoder"] = GraphDemand({"B": images}, shrinks="B")
        granted = self._backend.prepare(demand)
        heads = ((role, granted.get(f"{role}.head_modulation")) for role in self._models)
        for role in cached:
            name = f"{role}.backbone_full"
            if name in granted:
                batch = min(batch, batch * granted[name]["B"] // demand[name].sizes["B"])
        for name, sizes in granted.items():
            asked = demand[name].sizes
            _LOG.debug(
                "largest call of %s: %s%s", name, dict(sizes),
                "" if sizes == asked else f", split: {dict(asked)} was wanted",
            )  # fmt: skip
        return {role: sizes["N"] for role, sizes in heads if sizes is not None}, max(1, batch)

    def check(self, labels: Labels, options: GenerateOptions) -> NDArray[np.int64]:
        """Check labels and options against the bundle; returns class indices `[B]`.

        Raises:
            OptionError: one does not fit.
        """
        manifest = self.bundle.manifest
        instance_of("options", options, GenerateOptions, "GenerateOptions(...)")
        options = options.resolved(manifest.target, manifest.head_steps)
        if options.mode != "target" and "draft" not in self._models:
            raise OptionError(
                f"bundle {self.bundle.path} has no draft, so mode {options.mode} cannot run: use "
                "--mode target, or export with --draft"
            )
        role = "draft" if options.mode == "draft" else "target"
        if options.head == SOLVER and not self._models[role].config.solved:
            raise OptionError(
                f"head is {SOLVER}, and the {role} was exported for whole timesteps only: give "
                f'--head {CHAIN_HEADS[1]}, or export it with "sampling_algo": "dpm-solver" in '
                "its configuration"
            )
        if options.mode == "csd" and options.gamma > manifest.max_gamma:
            fits = options.gamma <= MAX_GAMMA
            more = f"; export with --max-gamma {options.gamma} for more" if fits else ""
            raise OptionError(
                f"gamma is {shown(options.gamma)}: this bundle takes 1 to {manifest.max_gamma}"
                f"{more}"
            )
        if options.has_local_steps:
            self._check_local(options)
        return resolve_labels(labels, manifest.target.class_num, manifest.class_names)

    def _check_local(self, options: GenerateOptions) -> None:
        """Check that the bundle has the graphs of local AR steps."""
        there = local_graphs(self.bundle.manifest)
        if not all(f"{role}.{LOCAL_GRAPHS[0]}" in there for role in options.roles):
            raise OptionError(
                f"bundle {self.bundle.path} has no graphs of local AR steps: export it again with "
                "csd-export --local-steps, or give --refresh 1"
            )

    def _render(self, tokens: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Tokens `[B, L, C]` of an event -> uint8 `[B, H, W, 3]`, between two AR steps of any run.

        Decoders keep nothing on a device, so what a run has there stays.
        """
        with self._turns.working:
            self._turns.check_open()
            return to_uint8(self._decode(self._latents(tokens)))

    def _latents(self, tokens: NDArray[np.float32]) -> NDArray[np.float32]:
        """Tokens `[B, L, C]` -> latents `[B, c, h, w]`."""
        config = self.bundle.manifest.target
        return arrays.unpatchify(tokens, config.patch_size, config.vae_embed_dim)

    def _decode(self, latents: NDArray[np.float32]) -> NDArray[np.float32]:
        """Latents `[B, c, h, w]` -> images `[B, 3, H, W]`, empty ones without a decoder."""
        if self._decoder is None and self.bundle.manifest.target.image_kind == "latent":
            return np.empty((len(latents), 3, 0, 0), dtype=np.float32)
        if self._decoder is None:
            return np.repeat(latents, 3, axis=1) if latents.shape[1] == 1 else latents
        size = self.bundle.manifest.max_batch
        parts = [latents[start : start + size] for start in range(0, len(latents), size)]
        images = np.concatenate([self._decoder.run({"latents": part})["image"] for part in parts])
        if not np.isfinite(images).all():
            raise NumericsError(
                "decoder returned values that are not finite: check its weights, and that it "
                "belongs to the model"
            )
        return images


def _checked_noise(noise: object) -> Noise:
    methods = ("orders", "initial", "per_step", "accept", "stream")
    if isinstance(noise, type) or not all(callable(getattr(noise, m, None)) for m in methods):
        raise wrong_type("noise", noise, "SeededNoise(...), FixedNoise(...) or their like")
    return cast(Noise, noise)


def _reserve_products() -> None:
    """Let NumPy's BLAS take its buffers before the graphs take their memory.

    OpenBLAS takes them at its first product and ends the process where it cannot: an error that
    nobody could report.
    """
    square = np.ones((64, 64), dtype=np.float32)
    np.dot(square, square)


def _less_memory(images: int, options: GenerateOptions) -> str:
    """What takes less memory than a run that failed."""
    lower = ["give fewer labels"] if images > 1 else []
    lower.append(f"lower head-steps ({options.head_steps})")
    if options.mode == "csd":
        lower.append(f"lower gamma ({options.gamma})")
    return " or ".join(lower)
