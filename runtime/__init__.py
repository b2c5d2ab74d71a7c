"""The torch-free runtime: open a bundle, start a session, generate.

Names are imported when they are first used, so that a command is within its frame (`frame.py`)
before NumPy is read.
"""

TYPE_CHECKING = False  # the module `typing` is not read for it
if TYPE_CHECKING:
    from .backends import BackendOptions
    from .bundle.bundle import Bundle
    from .config import MARConfig
    from .errors import BackendError, BundleError, ConfigError, CsdError, NumericsError, OptionError
    from .noise import FixedNoise, Noise, SeededNoise
    from .options import GenerateOptions
    from .result import GenerateResult
    from .session import Session
    from .stats import Progress, Stats
    from .streaming.event import StreamEvent
    from .streaming.stream import Stream

    __version__: str

__all__ = [
    "BackendError",
    "BackendOptions",
    "Bundle",
    "BundleError",
    "ConfigError",
    "CsdError",
    "FixedNoise",
    "GenerateOptions",
    "GenerateResult",
    "MARConfig",
    "Noise",
    "NumericsError",
    "OptionError",
    "Progress",
    "SeededNoise",
    "Session",
    "Stats",
    "Stream",
    "StreamEvent",
    "__version__",
]

_MODULE_OF = {
    "BackendError": "errors",
    "BackendOptions": "backends",
    "Bundle": "bundle.bundle",
    "BundleError": "errors",
    "ConfigError": "errors",
    "CsdError": "errors",
    "FixedNoise": "noise",
    "GenerateOptions": "options",
    "GenerateResult": "result",
    "MARConfig": "config",
    "Noise": "noise",
    "NumericsError": "errors",
    "OptionError": "errors",
    "Progress": "stats",
    "SeededNoise": "noise",
    "Session": "session",
    "Stats": "stats",
    "Stream": "streaming.stream",
    "StreamEvent": "streaming.event",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from .version import VERSION

        return VERSION
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = __import__(f"{__name__}.{_MODULE_OF[name]}", fromlist=[name])
    globals()[name] = found = getattr(module, name)
    return found


def __dir__() -> list[str]:
    return [*globals(), *__all__]
