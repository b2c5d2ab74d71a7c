"""Where cases are tried: a folder with a small bundle and the models that it was made of."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from .. import made
from ..helpers import DATA, edit_manifest
from .answers import Worked

# What makes one image of the small models in no time.
FAST = ("--num-iter", "2", "--head-steps", "2", "--threads", "1")


@dataclass(frozen=True)
class Place:
    """The folder of a run, and what lies in it.

    Attributes:
        folder: for all that is tried.
        bundle: the small bundle, which nobody alters.
        configs: configuration files by role.
    """

    folder: Path
    bundle: Path
    configs: dict[str, Path]

    @classmethod
    def at(cls, folder: Path, bundle: Path) -> Place:
        """Make ready in an empty folder."""
        os.chmod(folder, 0o755)
        own = folder / "bundle"
        shutil.copytree(bundle, own)
        return cls(folder, own, {role: made.write_config(folder, role)
                                 for role in ("target", "draft")})  # fmt: skip

    @contextlib.contextmanager
    def copy(self, change: Callable[[dict[str, Any]], object] | None = None) -> Iterator[Path]:
        """Make a bundle of links to the small one's files, with a manifest of its own."""
        made = self.folder / "copy"
        shutil.copytree(self.bundle, made, copy_function=os.link)
        own(made / "manifest.json")
        try:
            if change is not None:
                edit_manifest(made, change)
            yield made
        finally:
            shutil.rmtree(made)

    def models(self, **other: object) -> list[str]:
        """Options of `csd-export` for the small models; `other` by name replaces one."""
        options: dict[str, object] = {
            "target": DATA / "target.pth", "target_config": self.configs["target"],
            "draft": DATA / "draft.pth", "draft_config": self.configs["draft"],
            "decoder": DATA / "vae.ckpt", **other,
        }  # fmt: skip
        return [f"--{name.replace('_', '-')}={value}" for name, value in options.items()
                if value is not None]  # fmt: skip


def own(path: Path) -> None:
    """Give a file that is a link of another's a content of its own."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)


@contextlib.contextmanager
def no_work() -> Iterator[None]:
    """Have everything that takes time raise `Worked`."""

    def work(*_: object, **__: object) -> None:
        raise Worked

    from csd.tools.load import Load

    idle = mock.Mock(return_value=Load(None, None))
    with contextlib.ExitStack() as stack:
        for name in (
            "csd.runtime.session.Session.generate", "csd.export.writer.new_bundle",
            "csd.export.cli.rebuild", "csd.tools.random_model.random_model",
            "csd.tools.gpu_check.__main__._guarded", "csd.tools.demo.export",
            "csd.tools.doctor.cli.find_packages",
            "csd.models.training.__main__.train", "csd.models.training.__main__.train_classifier",
        ):  # fmt: skip
            stack.enter_context(mock.patch(name, work))
        for module in ("bench.cli", "demo", "measure.frame"):
            stack.enter_context(mock.patch(f"csd.tools.{module}.idle_load", idle))
        yield
