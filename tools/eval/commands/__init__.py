"""The commands of `csd-eval`, one module each with `build_parser`, `run` and `main`."""
