"""Code shared by the adapter formats: the tensors of a file, grouped by layer, and their validation."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from .._typing import Array
from .._validation import file_path, sequence, text
from ..errors import ArgumentError, FormatError, NotSupportedError
from ..layers.lora import LoRALayer
from ._convolutions import Kernel, as_matrices
from .safetensors import SafetensorsFile, as_stored

PREFIX = "base_model.model."
"""The beginning of all names in a PEFT file."""


class AdapterFile:
    """The tensors of an adapter file. A reader takes them; a tensor that is neither taken nor dropped is an error.

    Tensors stay in the file, memory-mapped, until they are taken.

    Parameters
    ----------
    file : path
    drop : iterable of str, optional
        Shell patterns (``*``, ``?``, ``[...]``) of the names of tensors to leave out, for the whole name or the part after
        ``base_model.model.``.

    Raises
    ------
    FormatError
        If the file is damaged.
    """

    def __init__(self, file: str | os.PathLike[str], drop: Iterable[str] = ()) -> None:
        self.label = file_path("file", file)
        with SafetensorsFile(file) as stored:
            patterns = (drop,) if isinstance(drop, str) else sequence("drop", drop, "names")
            for pattern in patterns:
                text("each of drop", pattern)
            self.dropped = tuple(key for key in stored if _matches(key, patterns))
            self._tensors = {key: as_stored(stored, key) for key in stored if key not in self.dropped}
            self.metadata = stored.metadata

    def take(self, pattern: re.Pattern[str]) -> dict[str, dict[str, Array]]:
        """The tensors whose names match, by the two groups of the pattern: layer path and kind.

        Float64 tensors stay float64, other floating-point tensors become float32, and all others keep their dtype.
        """
        found = self.take_stored(pattern)
        return {path: {kind: _own(tensor) for kind, tensor in kinds.items()} for path, kinds in found.items()}

    def take_stored(
        self, pattern: re.Pattern[str], *, unless: re.Pattern[str] | None = None
    ) -> dict[str, dict[str, Array]]:
        """The same tensors, except those that match `unless`, as the file stores them: see `as_stored`."""
        parts: dict[str, dict[str, Array]] = {}
        for key in list(self._tensors):
            match = pattern.fullmatch(key)
            if match and not (unless and unless.search(key)):
                parts.setdefault(match[1], {})[match[2]] = self._tensors.pop(key)
        return parts

    def take_by(self, place: Callable[[str], tuple[str, str] | None]) -> dict[str, dict[str, Array]]:
        """The tensors for whose name `place` knows a layer path and kind, by path and kind.

        Raises
        ------
        FormatError
            If two names mean the same tensor.
        """
        parts: dict[str, dict[str, Array]] = {}
        for key in list(self._tensors):
            if found := place(key):
                path, kind = found
                if kind in parts.setdefault(path, {}):
                    raise FormatError(f"{self.label}: {key!r} is another name of a tensor that the file already has")
                parts[path][kind] = _own(self._tensors.pop(key))
        return parts

    def check_all_taken(self) -> None:
        """Raise FormatError if a tensor is left."""
        for key in self._tensors:
            raise self.unexpected(key)

    def unexpected(self, key: str) -> FormatError:
        """The error for a tensor without a meaning."""
        return FormatError(f"{self.label}: unexpected key {key!r}: not a LoRA factor; drop={key!r} would leave it out")


def factors_by_path(file: AdapterFile, pattern: re.Pattern[str]) -> dict[str, dict[str, Array]]:
    """All tensors of a file, which must match `pattern`, as in `AdapterFile.take`."""
    parts = file.take(pattern)
    file.check_all_taken()
    if not parts:
        raise FormatError(f"{file.label}: contains no LoRA factors")
    return parts


def _matches(key: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in (key, key.removeprefix(PREFIX)))


def _own(tensor: Array) -> Array:
    """A copy; only of factors and other trained tensors, which are small compared to a base."""
    if tensor.dtype.kind != "f":
        return np.array(tensor)
    return np.array(tensor, np.float64 if tensor.dtype == np.float64 else np.float32)


def layer_of(A: Array, B: Array, alpha: object, where: str, **choices: Any) -> LoRALayer:
    """A layer with the given factors, in the layout of lora_np; errors name the place in the file."""
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not alpha >= 0:
        raise FormatError(f"{where}: alpha must be a number of at least 0, got {alpha!r}")
    try:
        return LoRALayer.from_factors(A, B, alpha, **choices)
    except ArgumentError as error:
        raise FormatError(f"{where}: {error}") from error


def matrix(factors: Mapping[str, Array], kind: str, where: str) -> Array:
    """A factor, checked to be present and a matrix."""
    if kind not in factors:
        raise FormatError(f"{where}.{kind} is missing")
    if factors[kind].dtype.kind != "f":
        raise FormatError(f"{where}.{kind} must have floating-point elements, got {factors[kind].dtype}")
    if factors[kind].ndim != 2:
        raise NotSupportedError(f"{where}.{kind} must be a matrix, got shape {factors[kind].shape}")
    return factors[kind]


def pair(factors: Mapping[str, Array], down: str, up: str, where: str) -> tuple[Array, Array, Kernel]:
    """A (in · kernel, r), B (r, out) and the kernel of two factors (r, in, *kernel) and (out, r, 1, ...)."""
    for kind in (down, up):
        if kind not in factors:
            raise FormatError(f"{where}.{kind} is missing")
        if factors[kind].dtype.kind != "f" or not factors[kind].size:
            given = f"{factors[kind].dtype} of shape {factors[kind].shape}"
            raise FormatError(f"{where}.{kind} must have floating-point elements, got {given}")
    return as_matrices(factors[down], factors[up], where)


def magnitude(factors: Mapping[str, Array], kind: str, layer: LoRALayer, where: str) -> Array:
    """A DoRA magnitude, checked to fit the layer; that of a convolution has further axes of length 1."""
    found = factors[kind]
    if found.dtype.kind != "f" or found.shape not in (
        (layer.output_size,),
        (1, layer.output_size, *(1 for _ in found.shape[2:])),
    ):
        raise FormatError(f"{where}.{kind} must have shape ({layer.output_size},), got {found.shape} of {found.dtype}")
    return found.reshape(-1)
