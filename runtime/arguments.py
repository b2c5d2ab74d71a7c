"""Arguments of the Python interface, checked and returned as Python's own types.

NumPy's scalars are taken where Python's are. What is not of the kind that an argument takes is an
`OptionError` that names the argument, what was given and its type; nothing is rounded or parsed.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .command.text import shown
from .errors import OptionError

T = TypeVar("T")


def wrong_type(name: str, value: object, wanted: str) -> OptionError:
    """The error that says what was given in place of what is `wanted`."""
    return OptionError(f"{name} is {shown(value)} ({type(value).__name__}): give {wanted}")


def whole_number(name: str, value: object) -> int:
    """Return a whole number as an `int`.

    Raises:
        OptionError: it is no integer of Python or NumPy; truth values and floats are none.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise wrong_type(name, value, "a whole number")
    return int(value)


def whole_number_from(name: str, value: object, low: int, high: int | None = None) -> int:
    """Return a whole number from `low` to `high` as an `int`.

    Raises:
        OptionError: it is none, or outside.
    """
    number = whole_number(name, value)
    if number < low or (high is not None and number > high):
        wanted = f"at least {low}" if high is None else f"{low} to {high}"
        raise OptionError(f"{name} is {shown(number)}: give {wanted}")
    return number


def real_number(name: str, value: object) -> float:
    """Return a number as a `float`.

    Raises:
        OptionError: it is no number of Python or NumPy, or larger than a float; truth values are
            none.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise wrong_type(name, value, "a number")
    try:
        return float(value)
    except OverflowError as error:
        raise OptionError(f"{name} is larger than any float: give a smaller number") from error


def positive_number(name: str, value: object) -> float:
    """Return a finite number above 0 as a `float`.

    Raises:
        OptionError: it is none.
    """
    number = real_number(name, value)
    if not (math.isfinite(number) and number > 0):
        raise OptionError(f"{name} is {number}: give a number above 0")
    return number


def number_from_zero(name: str, value: object) -> float:
    """Return a finite number that is not negative as a `float`.

    Raises:
        OptionError: it is none.
    """
    number = real_number(name, value)
    if not (math.isfinite(number) and number >= 0):
        raise OptionError(f"{name} is {number}: give 0 or more")
    return number


def truth_value(name: str, value: object) -> bool:
    """Return True or False.

    Raises:
        OptionError: it is no truth value of Python or NumPy.
    """
    if not isinstance(value, bool | np.bool_):
        raise wrong_type(name, value, "True or False")
    return bool(value)


def one_of(name: str, value: object, allowed: Sequence[str]) -> str:
    """Return a string that is one of the allowed ones.

    Raises:
        OptionError: it is no string, or another one.
    """
    wanted = f"one of {', '.join(allowed)}"
    if not isinstance(value, str):
        raise wrong_type(name, value, wanted)
    if value not in allowed:
        raise OptionError(f"{name} is {shown(value)}: give {wanted}")
    return str(value)


def instance_of(name: str, value: object, kind: type[T] | tuple[type[T], ...], wanted: str) -> T:
    """Return a value of a class, or of one of some.

    Raises:
        OptionError: it is of none of them.
    """
    if not isinstance(value, kind):
        raise wrong_type(name, value, wanted)
    return value


def numbers_array(name: str, value: object, dtype: type[np.generic]) -> NDArray[Any]:
    """Return an array of numbers as `dtype`; whole numbers only where `dtype` is an integer type.

    Raises:
        OptionError: the values are no numbers, not whole, or not finite as `dtype`.
    """
    whole = issubclass(dtype, np.integer)
    kinds, wanted = ("iu", "whole numbers") if whole else ("iuf", "numbers")
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:  # rows of different lengths
        raise wrong_type(name, value, f"an array of {wanted}") from error
    if array.dtype.kind not in kinds:
        raise OptionError(f"{name} is an array of {array.dtype}: give one of {wanted}")
    with np.errstate(over="ignore"):
        array = array.astype(dtype, copy=False)
    if not np.isfinite(array).all():
        raise OptionError(f"{name} has values that are not finite: give numbers")
    return array
