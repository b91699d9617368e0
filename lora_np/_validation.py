"""Argument checks for the public API: constructors, `forward`, `backward`, `predict`.

Each function returns the value in the form that the caller stores, or raises an error that names the argument, the rule
and the value. The mathematics beneath performs no checks.
"""

from __future__ import annotations

import itertools
import math
import operator
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

from ._typing import RNG, Array, Generator
from .errors import ArgumentError, ArgumentNullError, ArgumentOutOfRangeError

REAL_KINDS = "biuf"
NUMBER_KINDS = "iuf"


def not_none(name: str, value: object) -> None:
    """Reject None."""
    if value is None:
        raise ArgumentNullError(f"{name} must not be None")


def instance(name: str, value: object, kind: Any, what: str) -> None:
    """Reject None and values of other classes; `what` says what the value must be, such as "a layer"."""
    not_none(name, value)
    if not isinstance(value, kind):
        raise ArgumentError(f"{name} must be {what}, got {value!r}")


def text(name: str, value: object) -> None:
    """Reject everything but strings."""
    instance(name, value, str, "a string")


def sequence(name: str, value: Any, what: str) -> tuple[Any, ...]:
    """The items of a sequence or another iterable; a string is not one."""
    not_none(name, value)
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        return tuple(value)
    except TypeError:
        raise ArgumentError(f"{name} must be a sequence of {what}, got {value!r}") from None


def mapping(name: str, value: object) -> None:
    """Reject everything but mappings, such as dictionaries."""
    instance(name, value, Mapping, "a mapping")


def function(name: str, value: object) -> None:
    """Reject what cannot be called."""
    instance(name, value, Callable, "callable")


def file_path(name: str, value: Any) -> str:
    """A path as a string."""
    instance(name, value, str | bytes | os.PathLike, "a path")
    try:
        encoded = os.fsencode(value)
    except UnicodeEncodeError:
        raise ArgumentError(f"{name} must be a path, got {value!r}, which is not valid Unicode") from None
    if not encoded or b"\0" in encoded:
        raise ArgumentError(f"{name} must be a path without null characters, and not empty, got {value!r}")
    return os.fsdecode(value)


def flag(name: str, value: object) -> bool:
    """True or False; rejects values without a truth value, such as arrays."""
    try:
        return bool(value)
    except (TypeError, ValueError):
        raise ArgumentError(f"{name} must be True or False, got {value!r}") from None


def integer(name: str, value: object) -> int:
    """An integer of any integer type; booleans and floats are rejected."""
    if isinstance(value, bool | np.bool_):
        raise ArgumentError(f"{name} must be an integer, got {value!r}")
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ArgumentError(f"{name} must be an integer, got {value!r}") from None


def positive_int(name: str, value: object) -> int:
    """An integer of at least 1."""
    number = integer(name, value)
    if number < 1:
        raise ArgumentOutOfRangeError(f"{name} must be at least 1, got {number}")
    return number


def finite_float(name: str, value: object) -> float:
    """A real scalar that is neither infinite nor NaN; booleans are rejected."""
    if type(value) is float and math.isfinite(value):
        return value
    try:
        array = np.asarray(value)
    except ValueError:
        array = np.array(None)
    if array.ndim != 0 or array.dtype.kind not in NUMBER_KINDS or is_masked(value):
        raise ArgumentError(f"{name} must be a real number, got {value!r}")
    number = float(array)
    if not math.isfinite(number):
        raise ArgumentOutOfRangeError(f"{name} must be finite, got {number}")
    return number


def non_negative_float(name: str, value: object) -> float:
    """A finite real scalar of at least 0."""
    number = finite_float(name, value)
    if number < 0:
        raise ArgumentOutOfRangeError(f"{name} must be at least 0, got {number}")
    return number


def positive_float(name: str, value: object) -> float:
    """A finite real scalar greater than 0."""
    number = finite_float(name, value)
    if number <= 0:
        raise ArgumentOutOfRangeError(f"{name} must be greater than 0, got {number}")
    return number


def fraction(name: str, value: object) -> float:
    """A real scalar in [0, 1)."""
    number = finite_float(name, value)
    if not 0 <= number < 1:
        raise ArgumentOutOfRangeError(f"{name} must lie in [0, 1), got {number}")
    return number


_elements_left: ContextVar[int | None] = ContextVar("elements_left", default=None)


@contextmanager
def allocation_limit(elements: int) -> Iterator[None]:
    """Context manager: layers that are built in the block may have no more elements in all."""
    token = _elements_left.set(elements)
    try:
        yield
    finally:
        _elements_left.reset(token)


def array_shape(names: str, *shape: int) -> None:
    """Reject shapes that exceed the largest possible array, or what is left of an `allocation_limit`."""
    size, left = math.prod(shape), _elements_left.get()
    if size > sys.maxsize // 16:
        raise ArgumentOutOfRangeError(f"{names}: an array of shape {shape} is too large")
    if left is not None:
        if size > left:
            raise ArgumentOutOfRangeError(f"{names}: an array of shape {shape} has more elements than the file, {left:,}")
        _elements_left.set(left - size)


def rank_within(rank: object, input_size: int, output_size: int, name: str = "rank") -> int:
    """A possible rank of a matrix of this size: 1..min(input_size, output_size)."""
    number = positive_int(name, rank)
    limit = min(input_size, output_size)
    if number > limit:
        raise ArgumentOutOfRangeError(f"{name} must be at most min(input_size, output_size) = {limit}, got {number}")
    return number


def ascending_ranks(name: str, ranks: Iterable[object] | None, max_rank: int) -> tuple[int, ...]:
    """One or more ranks in 1..max_rank, strictly ascending."""
    numbers = tuple(positive_int(f"each of {name}", rank) for rank in sequence(name, ranks, "integers"))
    if not numbers:
        raise ArgumentError(f"{name} must contain at least one rank, got none")
    if any(second <= first for first, second in itertools.pairwise(numbers)):
        raise ArgumentError(f"{name} must be strictly ascending, got {numbers}")
    if numbers[-1] > max_rank:
        raise ArgumentOutOfRangeError(f"{name} must be at most max_rank = {max_rank}, got {numbers}")
    return numbers


def one_of(name: str, value: object, choices: Sequence[str]) -> str:
    """One of the given strings."""
    if not isinstance(value, str) or value not in choices:
        raise ArgumentError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def resolved_alpha(alpha: object, rank: int) -> float:
    """The LoRA alpha; a negative value means the rank."""
    number = finite_float("alpha", alpha)
    return float(rank) if number < 0 else number


def float_dtype(dtype: object) -> np.dtype[Any]:
    """The dtype of a layer: float32 or float64 (float16 matrix products lack hardware support)."""
    try:
        kind = np.dtype(dtype)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        kind = None
    if kind not in (np.float32, np.float64):
        raise ArgumentError(f"dtype must be float32 or float64, got {dtype!r}")
    return np.dtype(kind)


def generator(rng: RNG) -> Generator:
    """The generator of an object under construction: a new one, unless `rng` is already a generator."""
    try:
        return np.random.default_rng(rng)
    except (TypeError, ValueError):
        raise ArgumentError(f"rng must be a seed, a numpy.random.Generator or None, got {rng!r}") from None


def real_array(name: str, value: object, dtype: Any = None, *, copy: bool = False) -> Array:
    """A real array of the given dtype; objects, strings, complex numbers and masked arrays are rejected."""
    if value is None:
        raise ArgumentNullError(f"{name} must not be None")
    if is_masked(value):
        raise ArgumentError(f"{name} must not be a masked array: fill in its masked elements first")
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ArgumentError(f"{name} must be an array of real numbers: {error}") from None
    if array.dtype.kind not in REAL_KINDS:
        raise ArgumentError(f"{name} must be an array of real numbers, got dtype {array.dtype}")
    if dtype is None or array.dtype == dtype:
        return array.copy() if copy else array
    return array.astype(dtype, order="C")


def row_weights(name: str, value: object, rows: int) -> Array:
    """One finite, non-negative number for each row, in float64."""
    weights = real_array(name, value).astype(np.float64, copy=False)
    if weights.shape != (rows,):
        raise ArgumentError(f"{name} must have shape ({rows},), one number per row, got {weights.shape}")
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        wrong = weights[~(np.isfinite(weights) & (weights >= 0))][0]
        raise ArgumentOutOfRangeError(f"{name} must be finite and not negative, got {wrong}")
    return weights


def is_masked(value: object) -> bool:
    """Whether a value is a NumPy masked array, whose mask would be lost."""
    return isinstance(value, np.ndarray) and hasattr(value, "mask")


def last_axis(name: str, array: Any, size: int) -> None:
    """Reject an array whose last axis does not have the given size."""
    if array.ndim == 0 or array.shape[-1] != size:
        raise ArgumentError(f"{name} must have shape (..., {size}), got {array.shape}")


def same_shape(name: str, array: Array, shape: tuple[int, ...]) -> None:
    """Reject an array whose shape differs: nothing is broadcast silently."""
    if array.shape != shape:
        raise ArgumentError(f"{name} must have shape {shape}, got {array.shape}")
