"""The torch-free runtime: open a bundle, start a session, generate."""

from .bundle import Bundle
from .config import MARConfig
from .errors import BackendError, BundleError, ConfigError, CsdError, NumericsError, OptionError
from .noise import FixedNoise, Noise, SeededNoise
from .options import GenerateOptions

__all__ = [
    "BackendError",
    "Bundle",
    "BundleError",
    "ConfigError",
    "CsdError",
    "FixedNoise",
    "GenerateOptions",
    "MARConfig",
    "Noise",
    "NumericsError",
    "OptionError",
    "SeededNoise",
]
