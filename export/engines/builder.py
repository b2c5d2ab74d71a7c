"""Engines from ONNX graphs, with TensorRT for RTX or with TensorRT.

Both have the same Python API, and one code serves both; what only some versions have is asked for:

| what | where |
| --- | --- |
| `ComputeCapability` | TensorRT for RTX: builds without a GPU, for the devices that it names |
| `STRONGLY_TYPED` | to be set up to TensorRT 10; always so from 11 on |
| `TF32` | a flag that is on by default; off here, so that float32 is float32 |
| `REQUIRE_USER_ALLOCATION` | TensorRT for RTX: else calls may allocate, and are not recorded |
| `IProgressMonitor` | TensorRT 10 and later, and TensorRT for RTX |
"""

from __future__ import annotations

import contextlib
import re
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from ...runtime.bundle.manifest import GraphSpec
from ...runtime.device import find_device
from ...runtime.errors import BackendError, ExportError
from ...runtime.libraries.imports import import_library
from ..progress import OnStep
from .operator_plugins import parse_with_plugins

BACKENDS = ("tensorrt_rtx", "tensorrt")
# One engine for all that TensorRT for RTX builds for by default.
PORTABLE = (80, 86, 89, 120)
# What the fingerprint of an engine says of the settings below.
OPTIONS = {"strongly_typed": True, "tf32": False, "user_allocation": True}
# The first compute capability that has a precision, where not all have it. TensorRT for RTX has no
# float32 matrix products before 8.0.
_FIRST = {"tensorrt_rtx": {"bf16": 80, "fp32": 80}, "tensorrt": {"bf16": 80}}
_REASON_LENGTH = 300


@dataclass(frozen=True)
class Target:
    """What engines are built for.

    Attributes:
        name: of the folder of its engines, as `portable` or `sm86`.
        compute_capabilities: of the devices, as `8.6`.
        members: their names in the library's `ComputeCapability`; none for the device here.
    """

    name: str
    compute_capabilities: tuple[str, ...]
    members: tuple[str, ...] = ()


@dataclass(frozen=True)
class EngineBuilder:
    """A library and what it builds for. Get one with `open_builder`.

    Attributes:
        backend: `tensorrt_rtx` or `tensorrt`.
        library: its Python module.
        targets: what engines are built for.
    """

    backend: str
    library: Any
    targets: tuple[Target, ...]

    @property
    def version(self) -> str:
        """Version of the library."""
        return str(self.library.__version__)

    def target_of(self, compute_capabilities: tuple[str, ...]) -> Target | None:
        """Return the target of engines for these devices; None where none are built here for them.

        TensorRT for RTX has more targets than those that were asked for.
        """
        every = self.targets
        if self.backend == "tensorrt_rtx":
            sms = _known_sms(self.library)
            every = (*_rtx_targets(self.library, ()), *_rtx_targets(self.library, sms))
        return next((t for t in every if t.compute_capabilities == compute_capabilities), None)

    def build(
        self,
        path: Path,
        spec: GraphSpec,
        target: Target,
        label: str,
        step: OnStep,
        plugins: Path | None = None,
    ) -> Any:
        """Build an engine.

        Args:
            path: the ONNX file; files of weights lie beside it.
            spec: its inputs and the ranges of their dimensions.
            target: one of `targets`, or what `target_of` returned.
            label: what is built, for error messages.
            step: called as the build goes on.
            plugins: library of the plugins that the graph, an operator, is built with.

        Returns:
            The engine, as an object with the buffer protocol.

        Raises:
            ExportError: names the graph, the node and the first reason.
        """
        log = _Log(label)
        logger = _logger(self.library, log)
        try:
            builder = self.library.Builder(logger)
        except TypeError as error:  # what a factory that returns nothing becomes
            raise log.failure("cannot be started") from error
        network = builder.create_network(_network_flags(self.library))
        parser = self.library.OnnxParser(network, logger)
        if plugins is None:
            read = parser.parse_from_file(str(path))
        else:
            read = parse_with_plugins(parser, path, plugins, self.version)
        if not read:
            raise _parser_failure(parser, log)
        config = builder.create_builder_config()
        if hasattr(self.library.BuilderFlag, "TF32"):
            config.clear_flag(self.library.BuilderFlag.TF32)
        # A loop of unknown length has to allocate.
        if hasattr(self.library.BuilderFlag, "REQUIRE_USER_ALLOCATION") and not _loops(network):
            config.set_flag(self.library.BuilderFlag.REQUIRE_USER_ALLOCATION)
        self._set_target(config, target, log)
        config.add_optimization_profile(_profile(builder, network, spec, log))
        with _held_interrupt() as interrupt:
            if hasattr(self.library, "IProgressMonitor"):
                config.progress_monitor = _monitor(self.library, step, interrupt)
            engine = builder.build_serialized_network(network, config)
        if engine is None:
            raise log.failure("cannot be built")
        return engine

    def _set_target(self, config: Any, target: Target, log: _Log) -> None:
        if not target.members:
            return
        config.num_compute_capabilities = len(target.members)
        for index, member in enumerate(target.members):
            value = getattr(self.library.ComputeCapability, member)
            if not config.set_compute_capability(value, index):
                raise log.failure("cannot be built", f"the library refuses {member}")


def open_builder(backend: str, sms: Sequence[int], precisions: Sequence[str]) -> EngineBuilder:
    """Import a library and choose what to build for.

    Args:
        backend: `tensorrt_rtx` or `tensorrt`.
        sms: compute capabilities, as 86 for 8.6; none takes the portable engine, or the device.
        precisions: of the engines.

    Raises:
        ExportError: the library is missing, has no such target, or the target lacks a precision.
    """
    library = import_library(backend, kind=ExportError)
    targets = _rtx_targets(library, sms) if backend == "tensorrt_rtx" else _own_target(sms)
    for target in targets:
        for precision in precisions:
            _check_precision(backend, target, precision)
    return EngineBuilder(backend, library, targets)


def _check_precision(backend: str, target: Target, precision: str) -> None:
    first = _FIRST[backend].get(precision, 0)
    old = next((cc for cc in target.compute_capabilities if _sm(cc) < first), None)
    if old is not None:
        raise ExportError(
            f"{precision} needs compute capability {_dotted(first)} or later with {backend}, "
            f"{target.name} is {old}: give --precision fp16, or leave it out of --sm"
        )


def _known_sms(library: Any) -> list[int]:
    found = (re.fullmatch(r"SM(\d+)", name) for name in library.ComputeCapability.__members__)
    return sorted(int(match[1]) for match in found if match)


def _rtx_targets(library: Any, sms: Sequence[int]) -> tuple[Target, ...]:
    known = _known_sms(library)
    unknown = [sm for sm in sms if sm not in known]
    if unknown:
        raise ExportError(
            f"sm is {unknown[0]}: tensorrt_rtx {library.__version__} builds for "
            f"{', '.join(map(str, known))}; for other devices run --backend tensorrt on the device"
        )
    if not sms:
        portable = [sm for sm in PORTABLE if sm in known]
        return (Target("portable", tuple(map(_dotted, portable)), tuple(map(_member, portable))),)
    return tuple(Target(f"sm{sm}", (_dotted(sm),), (_member(sm),)) for sm in dict.fromkeys(sms))


def _own_target(sms: Sequence[int]) -> tuple[Target, ...]:
    try:
        own = _sm(find_device().compute_capability)
    except BackendError as error:
        reason = str(error).partition(":")[0]
        raise ExportError(
            f"tensorrt builds for the device that it runs on, and none is here ({reason}): copy "
            "the bundle to the device and run csd-export --rebuild BUNDLE --backend tensorrt there"
        ) from error
    others = [sm for sm in sms if sm != own]
    if others:
        raise ExportError(
            f"sm is {others[0]}: tensorrt builds for the device that it runs on, here {own}; run "
            "csd-export --rebuild BUNDLE --backend tensorrt on the other device"
        )
    return (Target(f"sm{own}", (_dotted(own),)),)


def _dotted(sm: int) -> str:
    return f"{sm // 10}.{sm % 10}"


def _sm(dotted: str) -> int:
    return int(dotted.replace(".", ""))


def _member(sm: int) -> str:
    return f"SM{sm}"


@dataclass
class _Log:
    """What the library had to say about a build."""

    label: str
    errors: list[str] = field(default_factory=list[str])

    def failure(self, what: str, reason: str = "") -> ExportError:
        """Return an error with `reason`, or with the first that was logged."""
        reason = reason or (self.errors or ["no reason given"])[0]
        return ExportError(
            f"{self.label} {what} ({' '.join(reason.split())[:_REASON_LENGTH]}): give another "
            "--precision, --sm or --profile, or export the bundle again"
        )


def _logger(library: Any, log: _Log) -> Any:
    """Return a logger of the library's type that collects errors and prints nothing."""
    serious = (library.ILogger.ERROR, library.ILogger.INTERNAL_ERROR)

    class Logger(library.ILogger):  # a type that exists once the library is imported
        def log(self, severity: Any, message: str) -> None:
            if severity in serious:
                log.errors.append(message)

    return Logger()


def _network_flags(library: Any) -> int:
    typed = getattr(library.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if typed is None else 1 << int(typed)


def _loops(network: Any) -> bool:
    layers = (network.get_layer(index) for index in range(network.num_layers))
    return any(layer.type.name == "TRIP_LIMIT" for layer in layers)


def _parser_failure(parser: Any, log: _Log) -> ExportError:
    """Return an error from the parser's first one."""
    if parser.num_errors == 0:
        return log.failure("cannot be read")
    error = parser.get_error(0)
    node = f" at node {error.node_name()}, {error.node_operator()}" if error.node_name() else ""
    return log.failure(f"cannot be read{node}", str(error.desc()))


def _profile(builder: Any, network: Any, spec: GraphSpec, log: _Log) -> Any:
    profile = builder.create_optimization_profile()
    shapes = {tensor.name: tensor.shape for tensor in spec.inputs}
    names = [network.get_input(index).name for index in range(network.num_inputs)]
    if set(names) != set(shapes):
        raise log.failure("cannot be built", f"its inputs are {names}, the manifest's {[*shapes]}")
    for name in names:
        sizes = (
            tuple(spec.profile[d][k] if isinstance(d, str) else d for d in shapes[name])
            for k in range(3)
        )
        profile.set_shape(name, *sizes)
    return profile


@dataclass
class _Interrupt:
    """The signal that came, or None."""

    number: int | None = None

    @property
    def seen(self) -> bool:
        """Whether one came."""
        return self.number is not None


@contextlib.contextmanager
def _held_interrupt() -> Generator[_Interrupt]:
    """Hold signals back until the end: what they raise in a callback is printed and dropped.

    These are Ctrl-C, SIGTERM and SIGHUP, where somebody handles them.
    """
    interrupt = _Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return

    def note(number: int, frame: Any) -> None:
        del frame
        interrupt.number = number

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before: dict[int, Callable[[int, FrameType | None], Any]] = {
        number: handler for number in numbers if callable(handler := signal.getsignal(number))
    }
    try:
        for number in before:
            signal.signal(number, note)
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if interrupt.number is not None:
        before[interrupt.number](interrupt.number, None)
        raise KeyboardInterrupt  # where that handler did not raise


def _monitor(library: Any, step: OnStep, interrupt: _Interrupt) -> Any:
    """Return a progress monitor of the library's type, which stops a build after Ctrl-C."""

    class Monitor(library.IProgressMonitor):
        def __init__(self) -> None:
            super().__init__()
            self.sizes: dict[str, int] = {}  # of the outermost phases

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self.sizes[phase_name] = num_steps
                step(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step_index: int) -> bool:
            if phase_name in self.sizes:
                step(phase_name, step_index + 1, self.sizes[phase_name])
            return not interrupt.seen

        def phase_finish(self, phase_name: str) -> None:
            self.sizes.pop(phase_name, None)

    return Monitor()
