"""TensorRT's and TensorRT-RTX's Python bindings behind one set of functions.

| what | from | elsewhere |
| --- | --- | --- |
| scratch memory of the caller | `ExecutionContextAllocationStrategy`, 10.0 | |
| scratch bytes for given shapes | `update_device_memory_size_for_shapes`, 10.1 | the profile's |
| sized `set_device_memory` | 10.1 | `device_memory`, without the size |
| runtime configuration, kernel cache | TensorRT-RTX | |
| `is_stream_capturable` | TensorRT-RTX 1.2 | a capture is tried |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...bundle.manifest import EngineSpec, GraphSpec
from ...errors import BackendError
from ...libraries.imports import import_library
from ...libraries.packages import install
from ..engines import LIBRARIES, renewal_command
from .kernel_cache import KernelFile

# Vendor's name of an element type -> name in the manifest and of NumPy.
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT64": "int64",
    "INT32": "int32",
    "BOOL": "bool",
}


def import_binding(backend: str) -> Any:
    """Import a vendor's package.

    Raises:
        BackendError: it is absent, broken or too old: the reason and what mends it.
    """
    module = import_library(backend, kind=BackendError)
    if not hasattr(module, "ExecutionContextAllocationStrategy"):
        raise BackendError(
            f"{LIBRARIES[backend]} {module.__version__} is too old (10.3 is the first): "
            f"{install(backend)}"
        )
    return module


@dataclass(frozen=True, eq=False)
class Engine:
    """A deserialized engine.

    Attributes:
        handle: the vendor's object.
        ranges: `(least, most)` of each named dimension, over all inputs.
    """

    handle: Any
    ranges: dict[str, tuple[int, int]]


class Binding:
    """One of the two libraries, with a runtime and a logger.

    Args:
        backend: `tensorrt` or `tensorrt_rtx`.

    Attributes:
        kernel_file: where RTX's compiled kernels come from and go to; None keeps them in memory.

    Raises:
        BackendError: the library is not installed or too old.
    """

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.module = import_binding(backend)
        self.library = LIBRARIES[backend]
        self._log = _make_log(self.module)
        self._runtime: Any = None
        self._kernel_cache: Any = None
        self.kernel_file: KernelFile | None = None
        self._configs: list[Any] = []

    @property
    def version(self) -> str:
        """Version of the library."""
        return str(self.module.__version__)

    def failure(self, what: str, remedy: str) -> BackendError:
        """An error with the first message that the library logged since the last one."""
        return BackendError(f"{self.library} cannot {what} ({self.message()}): {remedy}")

    def message(self) -> str:
        """Take the first message that the library logged since the last one."""
        return self._log.take() or "no message"

    def start(self) -> None:
        """Start what loads engines, unless it was.

        Raises:
            BackendError: it cannot be started on this machine.
        """
        if self._runtime is None:
            try:
                self._runtime = self.module.Runtime(self._log.logger)
            except TypeError as error:  # what a factory that returns nothing becomes
                self._log.note(str(error))
        if self._runtime is None:
            raise self.failure("start", "check nvidia-smi")

    def load(self, content: bytes) -> Any | None:
        """Return the vendor's engine; None where it refuses, and `message` says why.

        Raises:
            BackendError: see `start`.
        """
        self.start()
        try:
            return self._runtime.deserialize_cuda_engine(content)
        except RuntimeError as error:
            self._log.note(str(error))
            return None

    def load_plugins(self, library: Path) -> None:
        """Register the plugin creators of a shared library.

        Raises:
            BackendError: it cannot be loaded.
        """
        try:
            loaded = self.module.get_plugin_registry().load_library(str(library))
        except RuntimeError as error:
            self._log.note(str(error))
            loaded = None
        if loaded is None:
            raise self.failure(f"load the plugins of {library}", "build them again for its version")

    def has_plugin(self, name: str, version: str, namespace: str) -> bool:
        """Whether a plugin creator is registered."""
        # Not `get_creator`, which logs an error where there is none.
        creators = self.module.get_plugin_registry().all_creators
        wanted = name, version, namespace
        return any((c.name, c.plugin_version, c.plugin_namespace) == wanted for c in creators)

    def deserialize(self, folder: Path, spec: EngineSpec, graph: GraphSpec) -> Engine:
        """Load an engine and compare its tensors with the manifest's.

        Raises:
            BackendError: it cannot be loaded, or is an engine of something else.
        """
        command = renewal_command(folder, spec)
        handle = self.load((folder / spec.file).read_bytes())
        if handle is None:
            raise self.failure(f"load {spec.file}", command)
        found = {
            name: (self._is_input(handle, name), self._dtype(handle, name), len_of(handle, name))
            for name in (handle.get_tensor_name(i) for i in range(handle.num_io_tensors))
        }
        wanted = {
            tensor.name: (is_input, tensor.dtype, len(tensor.shape))
            for tensors, is_input in ((graph.inputs, True), (graph.outputs, False))
            for tensor in tensors
        }
        if odd := sorted(n for n in {*found, *wanted} if found.get(n) != wanted.get(n)):
            raise BackendError(
                f"{spec.file} is not an engine of {spec.graph} in {spec.precision} (see tensor "
                f"{odd[0]}): {command}"
            )
        return Engine(handle, _ranges(handle, graph))

    def _is_input(self, handle: Any, name: str) -> bool:
        return handle.get_tensor_mode(name) == self.module.TensorIOMode.INPUT

    def _dtype(self, handle: Any, name: str) -> str:
        dtype = handle.get_tensor_dtype(name)
        types = self.module.DataType
        known = (v for k, v in _DTYPES.items() if getattr(types, k, None) == dtype)
        return next(known, str(dtype))

    def create_context(self, engine: Engine, *, captured: bool) -> Any:
        """Return an execution context whose scratch memory the caller provides.

        Args:
            engine: of this binding.
            captured: whether the context is for one set of shapes that is run many times. RTX then
                compiles kernels for these shapes before it runs them.
        """
        module, user = self.module, self.module.ExecutionContextAllocationStrategy.USER_MANAGED
        kernels = getattr(module, "DynamicShapesKernelSpecializationStrategy", None)
        if kernels is None:
            context = engine.handle.create_execution_context(user)
        else:
            config = engine.handle.create_runtime_config()
            config.set_execution_context_allocation_strategy(user)
            config.dynamic_shapes_kernel_specialization_strategy = (
                kernels.EAGER if captured else kernels.LAZY
            )
            if self._kernel_cache is None:
                self._kernel_cache = config.create_runtime_cache()
                if self.kernel_file is not None:
                    self.kernel_file.fill(self._kernel_cache)
                    self.forget_messages()
            config.set_runtime_cache(self._kernel_cache)
            self._configs.append(config)  # a context may refer to its configuration
            context = engine.handle.create_execution_context(config)
        if context is None:
            raise self.failure("create an execution context", "check nvidia-smi for free memory")
        return context

    def set_shapes(self, context: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Give a context the shapes of all its inputs.

        Raises:
            BackendError: the library refuses one.
        """
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise self.failure(f"run {name} of {list(shape)}", "see the engine's profile")
        try:
            missing = ", ".join(context.infer_shapes())
        except RuntimeError as error:
            self._log.note(str(error))
            missing = "any"
        if missing:
            raise self.failure(f"infer shapes ({missing} missing)", "build the engines again")

    def scratch_bytes(self, context: Any, engine: Engine) -> int:
        """Scratch memory that a context needs for the shapes that it was given."""
        if hasattr(context, "update_device_memory_size_for_shapes"):
            return int(context.update_device_memory_size_for_shapes())
        handle = engine.handle
        if hasattr(handle, "get_device_memory_size_for_profile_v2"):
            return int(handle.get_device_memory_size_for_profile_v2(0))
        return int(handle.device_memory_size)

    def set_scratch(self, context: Any, address: int, size: int) -> None:
        """Give a context its scratch memory."""
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(address, size)
        else:
            context.device_memory = address

    def set_address(self, context: Any, name: str, address: int) -> None:
        """Bind a tensor.

        Raises:
            BackendError: the library refuses.
        """
        if not context.set_tensor_address(name, address):
            raise self.failure(f"bind {name}", "build the engines again")

    def enqueue(self, context: Any, stream: Any) -> None:
        """Enqueue a call.

        Raises:
            BackendError: the library refuses.
        """
        if not context.execute_async_v3(int(stream.handle)):
            raise self.failure("run an engine", "give --no-cuda-graph to see whether that is it")

    def is_capturable(self, context: Any, stream: Any) -> bool:
        """Whether the library says that a context can be captured; True where it cannot say."""
        ask = getattr(context, "is_stream_capturable", None)
        return True if ask is None else bool(ask(int(stream.handle)))

    def forget_messages(self) -> None:
        """Drop what was logged about a failure that does not matter."""
        self.message()

    def close(self) -> None:
        """Save compiled kernels and drop the runtime; engines and contexts must be gone."""
        if self.kernel_file is not None and self._kernel_cache is not None:
            self.kernel_file.save(self._kernel_cache)
        self._configs.clear()
        self._kernel_cache = self._runtime = None


def len_of(handle: Any, name: str) -> int:
    """Number of dimensions of an engine's tensor."""
    return len(tuple(handle.get_tensor_shape(name)))


def _ranges(handle: Any, graph: GraphSpec) -> dict[str, tuple[int, int]]:
    """`(least, most)` of each named dimension that the first profile allows."""
    ranges: dict[str, tuple[int, int]] = {}
    for tensor in graph.inputs:
        least, _, most = handle.get_tensor_profile_shape(tensor.name, 0)
        for name, low, high in zip(tensor.shape, tuple(least), tuple(most), strict=True):
            if isinstance(name, str):
                own = ranges.get(name, (low, high))
                ranges[name] = max(own[0], low), min(own[1], high)
    return ranges


def _make_log(module: Any) -> Any:
    """Return a log that keeps the first error until it is taken."""

    class Logger(module.ILogger):
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.first = ""

        def log(self, severity: Any, msg: str) -> None:
            errors = (module.ILogger.INTERNAL_ERROR, module.ILogger.ERROR)
            if severity in errors and not self.first:
                self.first = msg

    class Log:
        def __init__(self) -> None:
            self.logger = Logger()

        def note(self, message: str) -> None:
            self.logger.first = self.logger.first or message

        def take(self) -> str:
            message, self.logger.first = self.logger.first, ""
            return " ".join(message.split())[:200]

    return Log()
