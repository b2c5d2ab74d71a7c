"""What engines are built with and loaded with alike: enumerations, the logger, the registry.

Classes have the vendor's names and members only; what tests look at besides is an attribute of the
instance. `test_conformity` holds them against the real packages.
"""

from __future__ import annotations

import enum
import json
import types
from pathlib import Path
from typing import Any

VERSIONS = {"tensorrt": "10.3.0.26", "tensorrt_rtx": "1.7.1.116"}


class DataType(enum.Enum):
    FLOAT, HALF, BF16, INT64, INT32, BOOL = range(6)


class TensorIOMode(enum.Enum):
    NONE, INPUT, OUTPUT = range(3)


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    LAZY, EAGER, NONE = range(3)


class Severity(enum.IntEnum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING = Severity.INTERNAL_ERROR, Severity.ERROR, Severity.WARNING
    INFO, VERBOSE = Severity.INFO, Severity.VERBOSE
    Severity = Severity

    def __init__(self) -> None:
        self._ready = True

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError


class IPluginRegistry:
    """A library is a JSON list of the creators that it holds."""

    def __init__(self) -> None:
        self.known, self.libraries = set[str](), list[str]()

    @property
    def all_creators(self) -> list[Any]:
        return [
            types.SimpleNamespace(name=name, plugin_version="1", plugin_namespace="csd")
            for name in sorted(self.known)
        ]

    def load_library(self, plugin_path: str) -> Any:
        self.libraries.append(plugin_path)
        self.known |= set(json.loads(Path(plugin_path).read_text()))
        return object()


def started(logger: ILogger) -> ILogger:
    """A logger whose base class was initialised: the vendor's crashes where it was not."""
    assert isinstance(logger, ILogger)
    assert logger._ready
    return logger
