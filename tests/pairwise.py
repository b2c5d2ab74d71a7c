"""Fewer cases than the full product, where what matters is how two values go together."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest


def pairs_of(*axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Cases in which every value of each axis meets every value of every other one.

    The first case of the product that meets the most new pairs comes next, so that the cases are
    the same in every run.
    """
    product = [tuple(case) for case in itertools.product(*(range(len(axis)) for axis in axes))]

    def met(case: tuple[int, ...]) -> set[Any]:
        return set(itertools.combinations(enumerate(case), 2))

    missing = set().union(*map(met, product))
    cases: list[tuple[int, ...]] = []
    while missing:
        cases.append(max(product, key=lambda case: len(met(case) & missing)))
        missing -= met(cases[-1])
    return [tuple(axis[k] for axis, k in zip(axes, case, strict=True)) for case in cases]


def pairwise(names: str, *axes: Sequence[Any]) -> pytest.MarkDecorator:
    """Parametrize a test by `pairs_of` some axes."""
    return pytest.mark.parametrize(names.split(", "), pairs_of(*axes))
