"""ONNX Runtime: on the CPU, or on a CUDA device through its I/O binding."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle.manifest import Manifest, needed_graphs
from ..command.line.logs import logger
from ..command.memory_errors import is_memory_error, out_of_memory
from ..command.permissions import read_refused, readable
from ..command.text import check_text, first_line, plain
from ..device import DeviceInfo
from ..errors import BackendError
from ..libraries.packages import upgrade
from .base import Array, Check, Dims, Graph, GraphDemand, HeadRounds, unchecked
from .engines import graph_spec
from .external_data import linked_weights
from .onnx_library import load_onnxruntime

# Handing the work of one operator to a second thread pays from a few dozen rows on matrices of a
# few hundred columns, and only where that thread spins: the shipped head at 32 rows took 0.27 ms
# with one thread, 0.21 ms with two that spin and, in another run, 0.64 ms with two that sleep.
ONE_THREAD_BYTES = 8 << 20
# Rows times bytes of weights from which on such a graph is given its spinning threads: whole images
# of the shipped pair (head auto, with and without guidance, csd) took 2 to 5 % less than with 150
# million, where single calls broke even on a busier machine.
THREADED_WORK = 24_000_000
_LOG = logger(__name__)
_AGAIN = "export the bundle again"
# How it says that a graph has operators or a form that it does not know yet.
_TOO_NEW = re.compile(
    r"NOT_IMPLEMENTED|No Op registered|not a registered function/op|under development"
    r"|Unsupported model IR version|Unrecognized attribute",
    re.I,
)
CUDA_PROVIDER = "CUDAExecutionProvider"
# Precisions that it has operators for, the one that is taken where nobody asks for another first.
PRECISIONS = ("fp32", "fp16", "int8")
_DTYPES = {
    "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64,
    "tensor(int32)": np.int32, "tensor(bool)": np.bool_,
}  # fmt: skip


class OnnxGraph:
    """One graph, in an inference session for its usual work and perhaps one for much of it.

    Args:
        session: for most calls.
        wide: for calls whose rows times `weight_bytes` reach `THREADED_WORK`, or None.
        weight_bytes: size of the graph's weights.
    """

    def __init__(self, session: Any, wide: Any = None, weight_bytes: int = 0) -> None:
        self._session, self._wide = session, wide
        self._wide_rows = THREADED_WORK / max(1, weight_bytes)
        self._outputs: list[str] = [output.name for output in session.get_outputs()]
        tensors = (*session.get_inputs(), *session.get_outputs())
        self._types: dict[str, str] = {tensor.name: tensor.type for tensor in tensors}

    def dtype(self, name: str) -> np.dtype[Any]:
        """See `BindableGraph.dtype`."""
        return np.dtype(_DTYPES[self._types[name]])

    def run(
        self, feeds: Mapping[str, Array], rows: int = 0, keep: Collection[str] = ()
    ) -> dict[str, Array]:
        """See `Graph.run`; everything is on the host, so what is kept is an array."""
        try:
            values = self._session_for(rows).run(self._outputs, dict(feeds))
        except Exception as error:  # onnxruntime raises its own untyped exceptions
            raise _failure(error, _AGAIN) from error
        return dict(zip(self._outputs, values, strict=True))

    def bind(
        self, inputs: Mapping[str, Array], outputs: Mapping[str, Array], rows: int = 0
    ) -> Callable[[], None]:
        """See `BindableGraph.bind`."""
        arrays = (*inputs.values(), *outputs.values())
        if not all(array.flags.c_contiguous for array in arrays):
            raise ValueError("graphs are bound to dense arrays only")
        session = self._session_for(rows)
        binding = session.io_binding()
        for name, array in inputs.items():
            binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for name, array in outputs.items():
            binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        return _BoundCall(session, binding, arrays)

    def _session_for(self, rows: int) -> Any:
        return self._wide if self._wide and rows >= self._wide_rows else self._session


@dataclass(frozen=True, eq=False)
class _BoundCall:
    """A call at fixed addresses; it keeps their arrays."""

    session: Any
    binding: Any
    arrays: tuple[Array, ...]

    def __call__(self) -> None:
        try:
            self.session.run_with_iobinding(self.binding)
        except Exception as error:
            raise _failure(error, _AGAIN) from error


@dataclass(frozen=True, eq=False)
class KeptValue:
    """An output that stayed on the device: an `OrtValue`."""

    value: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dimensions."""
        return tuple(self.value.shape())


class BoundGraph:
    """One graph whose inputs and outputs are bound to a device.

    Args:
        session: of a provider of that device.
        device: `cuda`, or `cpu`, where the same code can be tried without a device.
    """

    def __init__(self, session: Any, device: str) -> None:
        self._session, self._device = session, device
        self._outputs: list[str] = [output.name for output in session.get_outputs()]

    def run(
        self, feeds: Mapping[str, Any], rows: int = 0, keep: Collection[str] = ()
    ) -> dict[str, Any]:
        """See `Graph.run`."""
        binding = self._session.io_binding()
        for name, value in feeds.items():
            if isinstance(value, KeptValue):
                binding.bind_ortvalue_input(name, value.value)
            else:
                binding.bind_cpu_input(name, np.ascontiguousarray(value))
        for name in self._outputs:
            binding.bind_output(name, self._device if name in keep else "cpu")
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            raise _failure(error, "--backend onnxruntime") from error
        values = zip(self._outputs, binding.get_outputs(), strict=True)
        return {name: KeptValue(v) if name in keep else v.numpy() for name, v in values}


class OnnxLoader:
    """Loads ONNX files.

    Args:
        threads: threads of one operator, in graphs of `ONE_THREAD_BYTES` and more, on the CPU.
        device: the CUDA device to run on, or None for the CPU.
        lean: give memory of a call back at its end, in place of keeping it for the next.

    Raises:
        BackendError: onnxruntime cannot be imported.
    """

    def __init__(
        self, threads: int, device: DeviceInfo | None = None, *, lean: bool = False
    ) -> None:
        self._ort = load_onnxruntime()
        self._threads, self._info, self._lean = threads, device, lean
        self._weights: list[dict[str, Any]] = []  # that sessions use where they lie

    def _session(self, path: Path, threads: int, *, spin: bool) -> Any:
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what is an error is raised, and said once
        options.enable_cpu_mem_arena = not self._lean
        # Several sessions take turns: a pool that spins after its turn slows the next one down.
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
        options.add_session_config_entry("session.force_spinning_stop", "1")
        # float32 is float32: by default the provider rounds matrices to 10 bits of mantissa.
        cuda = [] if self._info is None else [(CUDA_PROVIDER, {"use_tf32": "0"})]
        weights = linked_weights(self._ort, path)
        if weights:
            options.add_external_initializers([*weights], [*weights.values()])
            self._weights.append(weights)
        # On the CPU there is nothing else to try, and it would print that it does.
        again = {} if cuda else {"enable_fallback": 0}
        return self._ort.InferenceSession(
            str(path), options, providers=[*cuda, "CPUExecutionProvider"], **again
        )

    def load(self, path: Path) -> Graph:
        """Load an ONNX file.

        Raises:
            BackendError: the file cannot be loaded: the reason, and what mends it.
        """
        check_text(path, "onnxruntime", BackendError)
        try:
            if self._info is not None:
                return self._load_bound(path)
            files = [path, *path.parent.glob(f"{path.name}.data")]
            weight_bytes = sum(file.stat().st_size for file in files)
            if weight_bytes >= ONE_THREAD_BYTES:
                return OnnxGraph(self._session(path, self._threads, spin=False))
            narrow = self._session(path, 1, spin=False)
            wide = self._session(path, self._threads, spin=True) if self._threads > 1 else None
            return OnnxGraph(narrow, wide, weight_bytes)
        except BackendError:
            raise
        except Exception as error:  # onnxruntime raises its own untyped exceptions
            if is_memory_error(error):
                # A small graph is loaded twice where there is more than one thread.
                fewer = "give --threads 1" if self._threads > 1 and self._info is None else ""
                raise out_of_memory(f"onnxruntime cannot load {path.name}", error, fewer) from error
            old = _TOO_NEW.search(str(error))
            if old is not None:
                raise BackendError(
                    f"onnxruntime {self.version} is older than {path} (it says "
                    f"{plain(str(error)[old.start() :], 160)}): {upgrade('onnxruntime')}"
                ) from error
            raise BackendError(
                f"onnxruntime cannot load {path} ({first_line(error)}): {_load_remedy(path)}"
            ) from error

    def _load_bound(self, path: Path) -> BoundGraph:
        session = self._session(path, self._threads, spin=False)
        # Where a library of CUDA is missing, onnxruntime warns and takes the CPU.
        if CUDA_PROVIDER not in session.get_providers():
            raise BackendError(
                "onnxruntime cannot load its CUDA libraries: install CUDA and cuDNN of the "
                "versions that it was built for, or use --backend onnxruntime"
            )
        return BoundGraph(session, "cuda")

    @property
    def device(self) -> DeviceInfo | None:
        """The CUDA device that graphs run on, or None for the CPU."""
        return self._info

    @property
    def version(self) -> str:
        """Of onnxruntime."""
        return self._ort.__version__


def _load_remedy(path: Path) -> str:
    """What mends that a file cannot be loaded: it may not be read, or is not whole."""
    files = (path, *path.parent.glob(f"{path.name}.*"))
    return next((readable(file) for file in files if read_refused(file)), _AGAIN)


def graph_precision(manifest: Manifest, folder: Path, wanted: str | None) -> str:
    """Return the precision of the graphs that ONNX Runtime runs of a bundle.

    Args:
        manifest: of the bundle.
        folder: of the bundle, for messages.
        wanted: what was asked for, or None.

    Raises:
        BackendError: the bundle has no such graphs.
    """
    needed = needed_graphs(manifest)
    there = [
        name
        for name in PRECISIONS
        if all(n in manifest.tables.get(name, {}) for n in needed)
        and all(manifest.tables[name][n].files for n in needed)
    ]
    if not there and manifest.every_graph:
        raise BackendError(
            f"bundle {folder} has no graphs that onnxruntime runs, only {_what_else(manifest)}: "
            "use the bundle that it was made from, or --backend tensorrt or tensorrt_rtx"
        )
    if wanted is None:
        return there[0] if there else PRECISIONS[0]
    if wanted not in PRECISIONS:
        raise BackendError(
            f"onnxruntime has no --precision {wanted}: give {' or '.join(there)}, or use engines "
            "(--backend tensorrt or tensorrt_rtx)"
        )
    if wanted not in there:
        raise BackendError(
            f"bundle {folder} has no {wanted} graphs: give --precision {' or '.join(there)}, or "
            f"export it with --precision {wanted}"
        )
    return wanted


def _what_else(manifest: Manifest) -> str:
    precisions = ", ".join(manifest.precisions)
    return f"{precisions} engines" if manifest.engines else f"{precisions} graphs"


class OnnxRuntimeBackend:
    """Runs the ONNX files of one bundle.

    Args:
        folder: the bundle's directory.
        manifest: what is in it.
        loader: loads them.
        precision: of the graphs, one of `PRECISIONS`.
        check: called with the names of files before they are loaded.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        loader: OnnxLoader,
        precision: str = "fp32",
        check: Check = unchecked,
    ) -> None:
        self._folder, self._manifest, self._loader = folder, manifest, loader
        self._precision, self._check = precision, check
        self.name = "onnxruntime" if loader.device is None else "onnxruntime_cuda"
        self._graphs: dict[str, Graph] = {}

    def open(
        self, graph: str, padding: Mapping[str, int] | None = None, *, lasting: bool = False
    ) -> Graph:
        """See `Backend.open`; nothing is ever padded, and each call keeps its own."""
        del padding, lasting
        if graph not in self._graphs:
            spec = graph_spec(self._manifest, graph, self._precision)
            self._check(spec.files)
            began = time.perf_counter()
            self._graphs[graph] = self._loader.load(self._folder / spec.onnx_file)
            seconds = time.perf_counter() - began
            _LOG.debug("graph %s opened in %.3f s: %s", graph, seconds, spec.onnx_file)
        return self._graphs[graph]

    def head_rounds(self, graph: str) -> HeadRounds | None:
        """See `Backend.head_rounds`: the host does it."""
        del graph
        return None

    def prepare(self, demand: Mapping[str, GraphDemand]) -> Mapping[str, Dims]:
        """See `Backend.prepare`; onnxruntime takes memory as it goes."""
        return {graph: largest.sizes for graph, largest in demand.items()}

    @property
    def device_memory(self) -> int | None:
        """See `Backend.device_memory`."""
        return None

    def versions(self) -> dict[str, str]:
        """See `Backend.versions`."""
        versions = {"onnxruntime": self._loader.version, "precision": self._precision}
        device = self._loader.device
        if device is not None:
            versions |= {
                "driver": device.driver,
                "device": device.name,
                "compute_capability": device.compute_capability,
            }
        return versions

    def close(self) -> None:
        """See `Backend.close`."""
        self._graphs.clear()


def _failure(error: Exception, remedy: str) -> BackendError:
    if is_memory_error(error):
        return out_of_memory("onnxruntime failed", error)
    return BackendError(
        f"onnxruntime failed ({first_line(error)}): give fewer images at once, or {remedy}"
    )
