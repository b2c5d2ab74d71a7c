from __future__ import annotations

import gc
import weakref
from typing import ClassVar

import pytest
import torch

from csd.export.parts import Parts, inspect_parts
from csd.models import MAR
from csd.runtime.errors import WeightsError

from ..helpers import tiny_config


class Source:
    """Reads a tiny model, and checks that none of another source is in memory."""

    made: ClassVar[list[weakref.ref]] = []

    def __init__(self, role, **changes):
        self.role, self.reads, self.changes = role, 0, changes

    def __call__(self):
        gc.collect()
        assert not [ref for ref in self.made if ref() is not None], "two at once"
        self.reads += 1
        model = MAR(tiny_config(self.role)).eval()
        for name, value in self.changes.items():
            model.get_parameter(name).data.fill_(value)
        self.made.append(weakref.ref(model))
        return model


@pytest.fixture(autouse=True)
def nothing_made():
    Source.made = []


def test_one_model_is_in_memory_at_a_time_and_the_target_is_read_once():
    target, draft = Source("target"), Source("draft")
    parts, said = Parts({"target": target, "draft": draft}, None), []
    found = inspect_parts(parts, said.append)
    assert list(found.configs) == ["target", "draft"]
    assert said == ["draft: reading", "target: reading"]
    assert parts.model("target").config == found.configs["target"]
    assert target.reads == 1
    parts.free()
    parts.model("draft")
    parts.free()
    assert (target.reads, draft.reads) == (1, 2)
    assert not [ref for ref in Source.made if ref() is not None]


@pytest.mark.parametrize("role", ["target", "draft"])
def test_weights_that_are_not_finite_are_found_before_any_work(role):
    sources = {r: Source(r, **({"fake_latent": torch.nan} if r == role else {}))
               for r in ("target", "draft")}  # fmt: skip
    with pytest.raises(WeightsError, match=rf"the {role}: fake_latent holds values"):
        inspect_parts(Parts(sources, None), lambda _: None)
