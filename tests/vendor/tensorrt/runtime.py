"""A stand-in for the half of `tensorrt` and `tensorrt_rtx` that runs engines, on `cuda_bindings`.

An engine's file is JSON that names an ONNX file. A call reads its inputs and writes its outputs at
the addresses that were bound, when the stream gets to it, by running that file in ONNX Runtime;
it fills its scratch memory with NaN before and after. A context that nobody holds any more cannot
do its call. Names, order of calls, shapes, addresses and
sizes are checked as the vendor's documents ask for them.
"""

from __future__ import annotations

import functools
import json
import types
import weakref

import ml_dtypes
import numpy as np

from csd.runtime.backends.onnx_library import load_onnxruntime

from .common import (
    VERSIONS,
    DataType,
    DynamicShapesKernelSpecializationStrategy,
    ExecutionContextAllocationStrategy,
    ILogger,
    IPluginRegistry,
    Severity,
    TensorIOMode,
    started,
)

DTYPES = {
    "float32": DataType.FLOAT, "float16": DataType.HALF, "bfloat16": DataType.BF16,
    "int64": DataType.INT64, "int32": DataType.INT32, "bool": DataType.BOOL,
}  # fmt: skip


def numpy_type(name):
    """NumPy's type of an element type of the manifest."""
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


@functools.cache
def session_of(path):
    onnxruntime = load_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class IRuntimeCache:
    """Names of kernels, behind what they were compiled for."""

    def __init__(self, fake):
        self._fake, self.kernels = fake, set()

    def serialize(self):
        values = [self._fake.environment, sorted(self.kernels)]
        return memoryview(json.dumps(values).encode())

    def deserialize(self, blob):
        self._fake.cache_reads += 1
        environment, kernels = json.loads(bytes(blob))
        if environment != self._fake.environment:
            self._fake.logger.log(Severity.ERROR, "the cache is for something else")
            return False
        self.kernels = set(kernels)
        return True


class IRuntimeConfig:
    def __init__(self, fake):
        self._fake = fake
        self.strategy = ExecutionContextAllocationStrategy.STATIC
        self.dynamic_shapes_kernel_specialization_strategy = (
            DynamicShapesKernelSpecializationStrategy.LAZY
        )
        self.cache = None

    def set_execution_context_allocation_strategy(self, strategy):
        self.strategy = strategy

    def create_runtime_cache(self):
        return IRuntimeCache(self._fake)

    def set_runtime_cache(self, cache):
        assert isinstance(cache, IRuntimeCache)
        self.cache = cache
        return True


class ICudaEngine:
    def __init__(self, fake, values):
        self._fake = fake
        self.onnx = values["onnx"]
        self.tensors = values["tensors"]
        self.profile = values["profile"]
        self.num_io_tensors = len(self.tensors)
        self._names = list(self.tensors)

    def get_tensor_name(self, index):
        return self._names[index]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if self.tensors[name]["input"] else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return DTYPES[self.tensors[name]["dtype"]]

    def get_tensor_shape(self, name):
        return [size if isinstance(size, int) else -1 for size in self.tensors[name]["shape"]]

    def get_tensor_profile_shape(self, name, profile_index):
        assert profile_index == 0
        return [list(shape) for shape in self.profile[name]]

    def get_device_memory_size_for_profile_v2(self, profile_index):
        return self._fake.scratch(self.profile[next(iter(self.profile))][2])

    def create_execution_context(self, strategy):  # or a runtime configuration, its other form
        config = strategy if isinstance(strategy, IRuntimeConfig) else None
        strategy = strategy if config is None else config.strategy
        assert strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        self._fake.contexts += 1
        if config is not None:
            kernel = f"{self.onnx} {config.dynamic_shapes_kernel_specialization_strategy.name}"
            self._fake.compiled += kernel not in config.cache.kernels
            config.cache.kernels.add(kernel)
        return self._fake.context_class(self._fake, self)

    def create_runtime_config(self):
        return IRuntimeConfig(self._fake)


class IExecutionContext:
    def __init__(self, fake, engine):
        self._fake, self._engine = fake, engine
        self._shapes, self._addresses = {}, {}
        self._scratch = None
        self._inferred = self._ran = False

    def set_input_shape(self, name, shape):
        least, _, most = self._engine.profile[name]
        fits = len(shape) == len(most) and all(
            low <= size <= high for low, size, high in zip(least, shape, most, strict=True)
        )
        if not fits:
            self._fake.logger.log(Severity.ERROR, f"{name}: {shape} is outside of the profile")
            return False
        if self._shapes.get(name) != tuple(shape):
            self._shapes[name] = tuple(shape)
            self._inferred = self._ran = False
        return True

    def infer_shapes(self):
        self._inferred = True
        return [
            name for name, t in self._engine.tensors.items()
            if t["input"] and name not in self._shapes
        ]  # fmt: skip

    def update_device_memory_size_for_shapes(self):
        assert self._inferred
        return self._fake.scratch(next(iter(self._shapes.values())))

    def set_device_memory(self, memory, size):
        assert memory % 256 == 0
        self._scratch = memory, size

    def set_tensor_address(self, name, memory):
        assert name in self._engine.tensors
        assert memory % 256 == 0
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle):
        fake = self._fake
        stream = fake.cuda.streams[stream_handle]
        assert not fake.cuda.last, "an error was left behind"
        assert self._inferred
        assert set(self._addresses) == set(self._engine.tensors)
        needed = fake.scratch(next(iter(self._shapes.values())))
        assert self._scratch is not None
        assert self._scratch[1] >= needed
        if stream.captured is not None and not self._ran:
            fake.logger.log(Severity.ERROR, "shapes changed since the last call")
            stream.invalid = True
            return False
        if fake.fail_after is not None:
            fake.fail_after -= 1
            if fake.fail_after < 0:
                fake.logger.log(Severity.ERROR, "the first reason")
                fake.logger.log(Severity.ERROR, "what follows from it")
                return False
        self._ran = True
        fake.calls += 1
        shapes, addresses = dict(self._shapes), dict(self._addresses)
        held = weakref.ref(self)

        def compute():
            own = held()
            assert own is not None, "the context is gone while its call is under way"
            own._compute(shapes, addresses, own._scratch)

        stream.push(compute)
        return True

    def _compute(self, shapes, addresses, scratch):
        memory, engine = self._fake.cuda.memory, self._engine
        fake = self._fake
        memory(*scratch, fake.cuda.device)[:] = 0xFF
        dims, feeds = {}, {}
        for name, shape in shapes.items():
            spec = engine.tensors[name]
            dims.update(zip(spec["shape"], shape, strict=True))
            dtype = numpy_type(spec["dtype"])
            raw = memory(addresses[name], int(np.prod(shape)) * dtype.itemsize, fake.cuda.device)
            array = raw.view(dtype).reshape(shape).copy()
            feeds[name] = array if dtype.kind in "ib" else array.astype(np.float32)
        outputs = [name for name, spec in engine.tensors.items() if not spec["input"]]
        for name, value in zip(outputs, session_of(engine.onnx).run(outputs, feeds), strict=True):
            spec = engine.tensors[name]
            assert value.shape == tuple(s if isinstance(s, int) else dims[s] for s in spec["shape"])
            value = value.astype(numpy_type(spec["dtype"]))
            memory(addresses[name], value.nbytes, fake.cuda.device)[:] = (
                np.ascontiguousarray(value).reshape(-1).view(np.uint8)
            )
        memory(*scratch, fake.cuda.device)[:] = 0xFF


class RtxContext(IExecutionContext):
    """IExecutionContext of TensorRT-RTX."""

    def is_stream_capturable(self, stream):
        assert stream in self._fake.cuda.streams
        return self._fake.capturable


class OldContext(IExecutionContext):
    """IExecutionContext of TensorRT 10.0."""

    update_device_memory_size_for_shapes = property()
    set_device_memory = property()

    @property
    def device_memory(self):
        raise AttributeError

    @device_memory.setter
    def device_memory(self, memory):
        IExecutionContext.set_device_memory(self, memory, 1 << 40)

    def _compute(self, shapes, addresses, scratch):
        needed = self._fake.scratch(next(iter(shapes.values())))
        super()._compute(shapes, addresses, (scratch[0], needed))


class FakeTensorRT:
    """The state behind a module; `module` is what is imported.

    Attributes:
        capturable: what `is_stream_capturable` says.
        contexts: execution contexts made.
        calls: calls enqueued.
        compiled: kernels of TensorRT-RTX that were in no cache.
        cache_reads: caches that were given to it.
        environment: what kernels are compiled for, beside what csd knows of it.
        fail_after: calls until `execute_async_v3` fails, or None.
    """

    def __init__(self, backend, cuda, *, old=False):
        self.cuda, self.capturable, self.fail_after = cuda, True, None
        self.contexts = self.calls = self.compiled = self.cache_reads = 0
        self.environment = "this machine"
        self.logger = None
        self.registry = IPluginRegistry()
        self.context_class = OldContext if old else IExecutionContext
        module = self.module = types.ModuleType(backend)
        module.__version__ = VERSIONS[backend]
        for item in (DataType, TensorIOMode, ExecutionContextAllocationStrategy, ILogger):
            setattr(module, item.__name__, item)
        if backend == "tensorrt_rtx":
            module.DynamicShapesKernelSpecializationStrategy = (
                DynamicShapesKernelSpecializationStrategy
            )
            self.context_class = RtxContext
        module.Runtime = functools.partial(Runtime, self)
        module.get_plugin_registry = lambda: self.registry

    @staticmethod
    def scratch(shape):
        return 1000 + 16 * int(np.prod(shape))


class Runtime:
    def __init__(self, fake, logger):
        self._fake = fake
        fake.logger = started(logger)

    def deserialize_cuda_engine(self, serialized_engine):
        try:
            values = json.loads(bytes(serialized_engine))
        except ValueError:
            self._fake.logger.log(Severity.ERROR, "the engine's header is\nnot readable")
            return None
        plugin = values.get("plugin")
        if plugin and plugin not in self._fake.registry.known:
            self._fake.logger.log(Severity.ERROR, f"no creator of {plugin}")
            return None
        return ICudaEngine(self._fake, values)
