"""A stand-in for the half of `tensorrt` and `tensorrt_rtx` that builds engines.

Signatures and answers are those of the public bindings (python/src/infer/pyCore.cpp and
python/src/parsers/pyOnnx.cpp of NVIDIA/TensorRT, releases 10.3 and 11.1): what they lack is missing
here too, so that asking for it fails.
"""

from __future__ import annotations

import enum
import json
import types
from typing import Any

import onnx

from .common import ILogger, IPluginRegistry, started


class ParserError:
    def __init__(self, node: str, operator: str, desc: str) -> None:
        self._node, self._operator, self._desc = node, operator, desc

    def node_name(self) -> str:
        return self._node

    def node_operator(self) -> str:
        return self._operator

    def desc(self) -> str:
        return self._desc


class ITensor:
    def __init__(self, name: str) -> None:
        self.name = name


class ILayer:
    def __init__(self, name: str) -> None:
        self.type = types.SimpleNamespace(name=name)


class INetworkDefinition:
    def __init__(self, flags: int, layers: list[str]) -> None:
        self.flags, self._layers = flags, layers
        self.names: list[str] = []
        self.functions: list[str] = []

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    def get_layer(self, index: int) -> ILayer:
        return ILayer(self._layers[index])

    @property
    def num_inputs(self) -> int:
        return len(self.names)

    def get_input(self, index: int) -> ITensor:
        return ITensor(self.names[index])


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network, self._errors = network, list[ParserError]()
        started(logger)

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]

    def parse_from_file(self, model: str) -> bool:
        try:
            loaded = onnx.load(model)
        except Exception:
            self._errors.append(
                ParserError("", "", f"Failed to parse ONNX model from file: {model}!")
            )
            return False
        return self._read(loaded)

    def parse(self, model: bytes) -> bool:
        return self._read(onnx.load_model_from_string(model))

    def _read(self, model: onnx.ModelProto) -> bool:
        graph = model.graph
        self._network.functions = [function.name for function in model.functions]
        bad = [node for node in graph.node if node.op_type == "NonZero"]
        self._errors += [
            ParserError(n.name, n.op_type, "Assertion failed: no importer") for n in bad
        ]
        self._network.names += [value.name for value in graph.input]
        return not bad


class IOptimizationProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        if not all(len(shape) == len(min) for shape in (opt, max)):
            raise ValueError("shapes of different rank")
        self.shapes[input] = [list(min), list(opt), list(max)]


class IBuilderConfig:
    def __init__(self) -> None:
        self.profiles: list[IOptimizationProfile] = []
        self.cleared: list[Any] = []
        self.set: list[Any] = []
        self.progress_monitor: Any = None
        self.capabilities: dict[int, Any] = {}
        self.num_compute_capabilities = 0

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def clear_flag(self, flag: Any) -> None:
        self.cleared.append(flag)

    def set_flag(self, flag: Any) -> None:
        self.set.append(flag)


class RtxConfig(IBuilderConfig):
    def set_compute_capability(self, compute_capability: Any, index: int) -> bool:
        self.capabilities[index] = compute_capability
        return index < self.num_compute_capabilities


class IProgressMonitor:
    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        raise NotImplementedError

    def step_complete(self, phase_name: str, step: int) -> bool:
        raise NotImplementedError

    def phase_finish(self, phase_name: str) -> None:
        raise NotImplementedError


class FakeLibrary(types.ModuleType):
    """The module.

    Args:
        name: `tensorrt` or `tensorrt_rtx`.
        version: its version.
        flag: whether networks have the flag STRONGLY_TYPED.
        monitor: whether there are progress monitors.
        refusal: error that the builder logs in place of building.
        device: whether there is one; TensorRT does not start without.
        loops: whether networks hold a loop.

    Attributes:
        build: of the library; it loads what it built itself.
        loaded: engines that it was asked to load.
        starts: whether what loads engines starts.
        registry: of plugin creators; a library is a JSON list of those that it holds.
    """

    def __init__(
        self,
        name: str = "tensorrt",
        version: str = "10.3.0",
        *,
        flag: bool = True,
        monitor: bool = True,
        refusal: str = "",
        device: bool = True,
        loops: bool = False,
    ) -> None:
        super().__init__(name)
        self.__version__ = version
        self.refusal, self.device, self.loops = refusal, device, loops
        self.builds: list[dict[str, Any]] = []
        self.build, self.loaded, self.starts = "a", list[bytes](), True
        self.ExecutionContextAllocationStrategy = enum.Enum("Strategy", ["USER_MANAGED"])
        self.registry = IPluginRegistry()
        self.get_plugin_registry = lambda: self.registry
        self.ILogger, self.OnnxParser = ILogger, OnnxParser
        self.Builder, self.Runtime = self._make_builder, self._make_runtime
        if monitor:
            self.IProgressMonitor = IProgressMonitor
        flags = {"STRONGLY_TYPED": 1} if flag else {"PREFER_JIT_PYTHON_PLUGINS": 1}
        self.NetworkDefinitionCreationFlag = enum.IntEnum("Flags", flags)
        rtx = {"REQUIRE_USER_ALLOCATION": 20} if name == "tensorrt_rtx" else {}
        self.BuilderFlag = enum.IntEnum("BuilderFlag", {"TF32": 7, "REFIT": 6, **rtx})
        if name == "tensorrt_rtx":
            members = {f"SM{sm}": sm for sm in (75, 80, 86, 89, 120, 121)}
            self.ComputeCapability = enum.IntEnum(
                "ComputeCapability", {"NONE": 0, "CURRENT": 1, **members}
            )

    def _make_builder(self, logger: ILogger) -> Builder:
        if not self.device:
            logger.log(ILogger.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        return Builder(self, logger)

    def _make_runtime(self, logger: ILogger) -> Runtime:
        if not self.starts:
            logger.log(ILogger.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        return Runtime(self, logger)


class Runtime:
    def __init__(self, library: FakeLibrary, logger: ILogger) -> None:
        self._library, self._logger = library, logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
        self._library.loaded.append(serialized_engine)
        _, build, _ = json.loads(serialized_engine)
        if build != self._library.build:
            self._logger.log(ILogger.ERROR, "the engine is of another\nbuild")
            return None
        return object()


class Builder:
    def __init__(self, library: FakeLibrary, logger: ILogger) -> None:
        self._library, self._logger = library, logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        return INetworkDefinition(flags, ["CONVOLUTION", *["TRIP_LIMIT"] * self._library.loops])

    def create_builder_config(self) -> IBuilderConfig:
        return RtxConfig() if self._library.__name__ == "tensorrt_rtx" else IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> Any:
        self._logger.log(ILogger.WARNING, "Make sure input step has Int64 binding.")
        if self._library.refusal:
            self._logger.log(ILogger.ERROR, self._library.refusal)
            return None
        build = {
            "flags": network.flags,
            "functions": network.functions,
            "creators": [creator.name for creator in self._library.registry.all_creators],
            "shapes": [profile.shapes for profile in config.profiles],
            "cleared": [flag.name for flag in config.cleared],
            "set": [flag.name for flag in config.set],
            "capabilities": [config.capabilities[i].name for i in sorted(config.capabilities)],
        }
        self._library.builds.append(build)
        monitor = config.progress_monitor
        if monitor is not None:
            monitor.phase_start("Building Engine", None, 2)
            monitor.phase_start("Tactic Selection", "Building Engine", 1)
            goes_on = monitor.step_complete("Tactic Selection", 0)
            monitor.phase_finish("Tactic Selection")
            goes_on = goes_on and monitor.step_complete("Building Engine", 0)
            monitor.phase_finish("Building Engine")
            if not goes_on:
                return None
        return memoryview(
            json.dumps([self._library.__version__, self._library.build, build]).encode()
        )
