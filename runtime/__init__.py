"""The torch-free runtime: open a bundle, start a session, generate."""

from .backends import BackendOptions
from .bundle import Bundle
from .config import MARConfig
from .errors import BackendError, BundleError, ConfigError, CsdError, NumericsError, OptionError
from .noise import FixedNoise, Noise, SeededNoise
from .options import GenerateOptions
from .session import GenerateResult, Session
from .stats import Progress, Stats
from .version import VERSION

__version__ = VERSION

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
    "__version__",
]
