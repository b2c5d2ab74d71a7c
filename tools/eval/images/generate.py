"""Making the images of a run, batch after batch: each is stored whole, so any end is a pause."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ....export.progress import OnStep
from ....runtime.bundle.manifest import Manifest
from ....runtime.errors import CsdError
from ....runtime.options import GenerateOptions
from ....runtime.session import Session
from ....runtime.spread.generate import stop_here
from ....runtime.spread.sessions import Sessions
from ...load import LoadMeter
from ...machine import describe_machine
from ..metrics.features import FeatureSpace
from ..store.features import Extract, fill_features
from ..store.runs import Batch, Images, Run, Settings, add_batch, numbers_of
from .shards import Shard, missing_batches, own_images


@dataclass(frozen=True)
class Features:
    """A feature space with its loaded graph."""

    space: FeatureSpace
    extract: Extract


def content_sha256(manifest: Manifest) -> str:
    """Hash of all that a bundle decodes with: not of what else its manifest says."""
    models = {role: config.to_dict() for role, config in manifest.models.items()}
    values = {"files": manifest.file_hashes, "models": models}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def settings_of(
    session: Session, options: GenerateOptions, *, seed: int, batch: int, precision: str | None
) -> Settings:
    """What makes the images of a run what they are.

    Args:
        session: that makes them.
        options: with all defaults filled in.
        seed: of all noise.
        batch: images of a call.
        precision: that was asked for.

    Raises:
        CsdError: the bundle makes no images.
    """
    manifest = session.bundle.manifest
    if not manifest.makes_images:
        raise CsdError(
            f"bundle {session.bundle.path} has no decoder, so there are no images to judge: export "
            "it with --decoder"
        )
    return Settings(
        bundle=manifest.name,
        content_sha256=content_sha256(manifest),
        options=json.loads(json.dumps(options.to_dict())),
        seed=seed,
        batch=batch,
        classes=manifest.target.class_num,
        shape=_image_shape(manifest),
        backend=session.backend.name,
        precision=precision,
        versions=session.versions(),
    )


def about_run(session: Session) -> dict[str, Any]:
    """What is good to know of where a run was made; no path of this machine is in it."""
    manifest, origin = session.bundle.manifest, session.origin
    return {
        "machine": describe_machine(),
        "threads": origin.threads,
        "host_library": origin.host_library is not None,
        "manifest_sha256": origin.bundle["manifest_sha256"],
        "class_names": list(manifest.class_names or ()),
        "zoo": manifest.zoo,
    }


def make_images(
    connection: sqlite3.Connection,
    sessions: Sessions,
    run: Run,
    wanted: int,
    *,
    shard: Shard = Shard(),  # noqa: B008
    features: Sequence[Features] = (),
    step: OnStep,
    until: Callable[[], bool] = lambda: False,
) -> int:
    """Make and store the images that a run lacks; returns how many those were.

    Args:
        connection: to the database.
        sessions: of the run's bundle; only this process writes to the database.
        run: whose images are made.
        wanted: images of the whole run, all shards.
        shard: what of it is ours.
        features: spaces whose features are stored after each batch, and of what lacks them.
        step: called with images done and in all.
        until: asked after each batch whether to leave the rest for another time.

    Raises:
        CsdError: as for `Sessions.map` and the database.
    """
    settings = run.settings
    todo = [*missing_batches(wanted, settings.batch, numbers_of(connection, run), shard)]
    total = own_images(wanted, settings.batch, shard)
    done, made = total - sum(count for _, count in todo), 0
    for each in features:
        fill_features(connection, run, each.space, each.extract)
    step(run.name, done, total)
    pieces = [(settings, first, count) for first, count in todo]
    for batch, images in sessions.map(make_batch, pieces):
        count = batch.count
        add_batch(connection, run, batch, images, _labels(settings, batch.first, count))
        for each in features:
            fill_features(connection, run, each.space, each.extract)
        done, made = done + count, made + count
        step(run.name, done, total)
        if until():
            break
    return made


def make_batch(
    session: Session, settings: Settings, first: int, count: int
) -> tuple[Batch, Images]:
    """Make the images of a batch, in whichever process.

    Raises:
        CsdError: as for `Session.generate`, or another backend than that of the run took over.
    """
    meter = LoadMeter()
    result = session.generate(
        _labels(settings, first, count),
        GenerateOptions(**_from_json(settings.options)),
        seed=settings.seed,
        first_image=first,
        at_once=settings.batch,
        progress=stop_here,
    )
    if result.origin.backend != settings.backend:
        raise CsdError(
            f"backend {settings.backend} failed, and a run has the images of one: give --backend "
            f"{result.origin.backend} and another --name"
        )
    stats = result.stats
    batch = Batch(first, count, stats.taken, meter.read().others, stats.to_dict())
    return batch, result.images


def _labels(settings: Settings, first: int, count: int) -> list[int]:
    return [number % settings.classes for number in range(first, first + count)]


def _from_json(options: dict[str, Any]) -> dict[str, Any]:
    """Options as they were before they became JSON, which has no tuples."""
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in options.items()
    }


def _image_shape(manifest: Manifest) -> tuple[int, int]:
    """Height and width of an image."""
    if "decoder" in manifest.every_graph:
        shape = manifest.every_graph["decoder"].outputs[0].shape
        return int(shape[2]), int(shape[3])
    size = manifest.target.latent_shape
    return int(size[1]), int(size[2])
