"""A session: the loaded graphs of a bundle, and `generate`."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from . import arrays
from .backends import Backend, BackendOptions, Graph, GraphDemand, Timed, create_backend
from .backends.engines import needed_graphs
from .bundle import Bundle
from .decoding.demand import largest_calls
from .decoding.loop import decode
from .decoding.model import RuntimeModel
from .decoding.plan import Canvas, Plan
from .errors import BundleError, NumericsError, OptionError
from .images import to_uint8
from .noise import Noise, SeededNoise
from .options import GenerateOptions
from .stats import Progress, ProgressCallback, Stats
from .version import version


@dataclass(frozen=True, eq=False)
class GenerateResult:
    """What `generate` returns.

    Attributes:
        images: uint8 `[B, H, W, 3]`; H = W = 0 where the bundle has no decoder for its latents.
        latents: float32 `[B, c, h, w]`.
        tokens: float32 `[B, L, C]`.
        stats: counts and times.
        options: the options with all defaults filled in.
    """

    images: NDArray[np.uint8]
    latents: NDArray[np.float32]
    tokens: NDArray[np.float32]
    stats: Stats
    options: GenerateOptions


class Session:
    """Loaded graphs. Get one with `Bundle.session`, use it as a context manager.

    Raises:
        BackendError: the backend is not installed or cannot load a graph.
    """

    def __init__(self, bundle: Bundle, options: BackendOptions | None = None) -> None:
        self.bundle = bundle
        for graph in needed_graphs(bundle.manifest):
            self._require(graph)
        self._backend = create_backend(bundle.path, bundle.manifest, options or BackendOptions())
        self._models: dict[str, RuntimeModel] = {}
        try:
            self._models |= {role: self._load_model(role) for role in bundle.manifest.models}
            self._decoder = self.graph("decoder") if "decoder" in bundle.manifest.graphs else None
        except BaseException:
            self.close()
            raise

    def _require(self, graph: str) -> None:
        if graph not in self.bundle.manifest.graphs:
            raise BundleError(
                f"bundle {self.bundle.path} has no graph {graph}: export it again with csd-export"
            )

    def graph(self, name: str) -> Graph:
        """Open a graph of the bundle, those included that decoding does not use (`arrays.accept`).

        Raises:
            BundleError: the bundle has no such graph.
            BackendError: it cannot be loaded here.
        """
        self._require(name)
        config = self.bundle.manifest.models.get(name.split(".")[0])
        # Positions that a backend adds to `visible` are none of an image's (see `model`).
        return self._backend.open(name, {} if config is None else {"visible": config.seq_len})

    @property
    def backend(self) -> Backend:
        """What runs the graphs."""
        return self._backend

    def _load_model(self, role: str) -> RuntimeModel:
        names = ("backbone", "head_modulation", "head_step")
        graphs = {name: self.graph(f"{role}.{name}") for name in names}
        return RuntimeModel(
            role,
            self.bundle.manifest.models[role],
            graphs,
            self.bundle.head_calibration(role),
            self._backend.head_rounds(f"{role}.head_step"),
        )

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
        """Release the graphs."""
        self._models.clear()
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
        labels: Sequence[int] | NDArray[np.integer],
        options: GenerateOptions | None = None,
        *,
        seed: int = 0,
        noise: Noise | None = None,
        first_image: int = 0,
        progress: ProgressCallback | None = None,
    ) -> GenerateResult:
        """Generate one image for each label.

        Args:
            labels: `[B]` class indices; the number of classes means unconditional.
            options: what to do; the defaults are those of `GenerateOptions`.
            seed: seed of all noise, unless `noise` is given.
            noise: noise to use in place of the seed's.
            first_image: number of the first image; image k of a seed is the same image whatever
                the batch it is generated in.
            progress: called after AR steps.

        Raises:
            OptionError: an option or label does not fit the bundle.
            NumericsError: a network returned a value that is not finite.
        """
        if not self._models:
            raise OptionError("the session is closed: open another one with Bundle.session")
        manifest, config = self.bundle.manifest, self.bundle.manifest.target
        options = (options or GenerateOptions()).resolved(config, manifest.head_steps)
        wanted = self.check(labels, options)
        source = SeededNoise(seed) if noise is None else noise
        plan = Plan.of(options, config.seq_len)
        stats = Stats(plan.schedule.num_iter)
        clock = self._backend.clock if isinstance(self._backend, Timed) else None
        began = time.perf_counter()
        if clock is not None:
            clock.start()

        numbers = np.arange(first_image, first_image + len(wanted), dtype=np.int64)
        canvas = Canvas.blank(config, source, wanted, numbers)
        # Under prefix verification each image accepts its own number of AR steps.
        alone = options.mode == "csd" and options.verify == "prefix"
        parts = canvas.split(1 if alone else manifest.max_batch)
        most_tokens = self._prepare(plan, len(parts[0]))
        report = _Reporter(stats, len(parts) * plan.schedule.num_iter, progress)
        for part in parts:
            decode(
                part, self._models, plan, source, stats,
                most_tokens=most_tokens, advanced=report.advanced,
            )  # fmt: skip

        latents = arrays.unpatchify(canvas.tokens, config.patch_size, config.vae_embed_dim)
        with stats.timed("decoder"):
            images = to_uint8(self._decode(latents))
        stats.seconds = time.perf_counter() - began
        stats.device_seconds = None if clock is None else clock.stop()
        stats.device_memory_peak = self._backend.device_memory
        return GenerateResult(images, latents, canvas.tokens, stats, options)

    def _prepare(self, plan: Plan, batch: int) -> dict[str, int]:
        """Plan the memory of a run; returns the rows of z that a model may take at once."""
        demand = largest_calls(plan, batch, self._models)
        if self._decoder is not None:
            images = min(self.bundle.manifest.max_batch, batch)
            demand["decoder"] = GraphDemand({"B": images}, shrinks="B")
        granted = self._backend.prepare(demand)
        heads = ((role, granted.get(f"{role}.head_modulation")) for role in self._models)
        return {role: sizes["N"] for role, sizes in heads if sizes is not None}

    def check(
        self, labels: Sequence[int] | NDArray[np.integer], options: GenerateOptions
    ) -> NDArray[np.int64]:
        """Check labels and options against the bundle; returns the labels `[B]`.

        Raises:
            OptionError: one does not fit.
        """
        manifest = self.bundle.manifest
        if options.mode != "target" and "draft" not in self._models:
            raise OptionError(
                f"bundle {self.bundle.path} has no draft, so mode {options.mode} cannot run: use "
                "--mode target, or export with --draft"
            )
        if options.mode == "csd" and options.gamma > manifest.max_gamma:
            raise OptionError(
                f"gamma is {options.gamma}: this bundle takes 1 to {manifest.max_gamma}; export "
                f"with --max-gamma {options.gamma} for more"
            )
        wanted = np.asarray(labels)
        if wanted.ndim != 1 or len(wanted) == 0 or not np.issubdtype(wanted.dtype, np.integer):
            raise OptionError("labels must be a non-empty list of whole numbers")
        classes = manifest.target.class_num
        bad = wanted[(wanted < 0) | (wanted > classes)]
        if len(bad):
            raise OptionError(
                f"label {int(bad[0])} is out of range: give 0 to {classes - 1}, or {classes} for "
                "an unconditional image"
            )
        return wanted.astype(np.int64)

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


class _Reporter:
    """Turns finished AR steps into progress reports."""

    def __init__(self, stats: Stats, total: int, callback: ProgressCallback | None) -> None:
        self._stats, self._total, self._callback = stats, total, callback
        self._done = 0

    def advanced(self, steps: int) -> None:
        """Report that AR steps were finished."""
        self._done += steps
        if self._callback is not None:
            stats = self._stats
            self._callback(Progress(self._done, self._total, stats.accepted, stats.drafted))
