"""Errors that a user can mend. Each message is one line that names the cause and the remedy."""


class CsdError(Exception):
    """Base of all errors that the command line reports as one line with exit code 2."""


class WriteRefusedError(PermissionError):
    """A place that may not be written to, where a `PermissionError` may be about reading."""


class ConfigError(CsdError, ValueError):
    """A model configuration is not valid."""


class OptionError(CsdError, ValueError):
    """A generation option is out of range or does not fit the bundle."""


class BundleError(CsdError):
    """A bundle is missing, incomplete, altered or of another version."""


class BackendError(CsdError):
    """A backend is not installed or cannot run the bundle here."""


class NumericsError(CsdError):
    """A network returned a value that is not finite."""


class WeightsError(CsdError):
    """Weights cannot be read or do not fit the configuration."""


class ExportError(CsdError):
    """A bundle cannot be exported."""
