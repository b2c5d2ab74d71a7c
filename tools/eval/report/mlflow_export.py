"""A comparison in MLflow, where `MLFLOW_TRACKING_URI` says that there is one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ....runtime.command.text import first_line, shown
from ....runtime.errors import CsdError
from ....runtime.libraries.imports import import_library, need
from ..compare import Comparison, Row

URI = "MLFLOW_TRACKING_URI"
# As MLflow's own tools take it.
EXPERIMENT, DEFAULT_EXPERIMENT = "MLFLOW_EXPERIMENT_NAME", "csd-eval"


def check_mlflow() -> bool:
    """Whether comparisons go to MLflow; its library is looked for before any work.

    Raises:
        CsdError: they should, and it is not installed.
    """
    if not os.environ.get(URI):
        return False
    need(URI, "mlflow", otherwise=f"unset {URI}")
    return True


def export(comparison: Comparison, page: Path | None) -> None:
    """Log every run of a comparison as a run of MLflow: options, figures, verdicts, the page.

    Args:
        comparison: what is logged.
        page: HTML file that becomes an artifact of each, or None.

    Raises:
        CsdError: MLflow refused something, or cannot be reached; one line.
    """
    module = import_library("mlflow", URI)
    try:
        client = module.MlflowClient()
        name = os.environ.get(EXPERIMENT) or DEFAULT_EXPERIMENT
        known = client.get_experiment_by_name(name)
        experiment = client.create_experiment(name) if known is None else known.experiment_id
        for row in comparison.rows:
            run = client.create_run(experiment, run_name=row.run.name).info.run_id
            for key, value in _params(row):
                client.log_param(run, key, value)
            for key, value in _metrics(row):
                client.log_metric(run, key, value)
            for title, space in row.spaces.items():
                for metric, found in space.verdicts.items():
                    client.set_tag(run, f"{title}/{metric}", found.word)
            client.set_tag(run, "compared_with", comparison.rows[0].run.name)
            if page is not None:
                client.log_artifact(run, str(page))
            client.set_terminated(run)
    except Exception as error:  # MLflow's, and those of what it reaches its server with
        raise CsdError(
            f"MLflow at {shown(os.environ[URI])} refused the comparison ({first_line(error)}): "
            f"check the server, or unset {URI}"
        ) from error


def _params(row: Row) -> Iterator[tuple[str, Any]]:
    settings = row.run.settings
    yield from settings.options.items()
    yield "seed", settings.seed
    yield "bundle", settings.bundle
    yield "content_sha256", settings.content_sha256
    yield "backend", settings.backend
    yield "precision", settings.precision
    for name, value in settings.versions.items():
        yield f"version {name}", value


def _metrics(row: Row) -> Iterator[tuple[str, float]]:
    yield "seconds_per_image", row.seconds
    for title, space in row.spaces.items():
        yield f"{title}/images", space.figures.count
        for name, estimate in space.figures.values.items():
            low, high = estimate.interval()
            yield f"{title}/{name}", estimate.value
            yield f"{title}/{name} low", low
            yield f"{title}/{name} high", high
