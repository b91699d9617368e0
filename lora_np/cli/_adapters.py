"""Load adapters from any supported file or folder; the format is detected from the content, not from the name."""

import argparse
import contextlib
import os
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..adapters.multilora import MultiLoRAAdapter
from ..base import Layer
from ..errors import ArgumentError, FormatError, InvalidOperationError, NotSupportedError
from ..factors.weights import AdapterWeights, extract
from ..io import diffusers, kohya, mlx, npz, peft
from ..io._peft_vera import with_base_sizes
from ..io._recognition import other_kind, readable_kind
from ..io.base_names import with_tensor_names
from ..io.safetensors import SafetensorsFile
from ._text import natural, printable

DEFAULT = "default"
"""PEFT's name for the adapter in the folder itself."""

UNNAMED = ""
"""The name of the only adapter in a file or folder without named ones."""

EXPECTED = (
    f"expected a folder with {peft.CONFIG} and {peft.WEIGHTS} (PEFT; also in subfolders) or {mlx.WEIGHTS} (mlx-lm), "
    "a safetensors file with keys <module>.lora_down.weight (kohya) or <module>.lora_A.weight (diffusers), "
    "or a lora_np npz file"
)

ASSUMED = "no alpha is stored, so it is taken to be the rank; --alpha gives another"
VERA = "VeRA stores no input sizes; without a base they are those of the shared projection"

BASE_ENTRIES = ("base_model_name_or_path", "revision", "task_type", "fan_in_fan_out")
"""The entries of a PEFT configuration that describe the base model; they remain valid when the adapter changes."""


@dataclass(frozen=True)
class Adapters:
    """The adapters in a file or folder, which are loaded on request."""

    path: str
    kind: str
    names: tuple[str, ...]
    load: Callable[[str], AdapterWeights]
    """Loads an adapter by name."""
    files: Mapping[str, str] = field(default_factory=dict)
    """The safetensors file of each adapter; empty if the adapters are in a model."""
    model: Layer | None = None
    """The model that contains the adapters, if any."""
    by_base: Callable[[AdapterWeights, str], AdapterWeights] | None = None
    """Gives the layers the names or the sizes that they have in a base, for files that do not tell them."""
    note: str | None = None
    """What the user should know about the reading of the file."""

    def choose(self, task: str | None) -> str:
        """The name of the adapter for the option ``--task``."""
        if task is not None:
            if task in self.names and task != UNNAMED:
                return task
            named = ", ".join(filter(None, self.names))
            available = f"available: {named}" if named else "the only adapter is unnamed"
            raise ArgumentError(f"{self.path}: no adapter named {task!r}; {available}")
        if DEFAULT in self.names:
            return DEFAULT
        if len(self.names) > 1:
            raise ArgumentError(f"{self.path}: contains several adapters: {', '.join(self.names)}; choose one with --task")
        return self.names[0]

    def read(self, name: str) -> AdapterWeights:
        """Load an adapter; the layers of a file are sorted by path. Dropped tensors are named on standard error."""
        with naming(self.path):
            weights = self.load(name)
        if self.note:
            print(f"lora-np: {printable(self.path)}: {self.note}", file=sys.stderr)
        _say_dropped(self.path, weights)
        if self.model is not None:
            return weights
        return replace(weights, layers={path: weights.layers[path] for path in sorted(weights.layers, key=natural)})


@contextlib.contextmanager
def naming(source: str) -> Iterator[None]:
    """Context manager: prefix errors with the file or folder that they are about."""
    try:
        yield
    except (ArgumentError, InvalidOperationError, NotSupportedError) as error:
        text = str(error)
        named = text.startswith((f"{source}:", f"{source} ", os.path.join(source, "")))
        raise type(error)(text if named else f"{source}: {text}") from error


def find_adapters(
    path: str, *, drop: Sequence[str] = (), alpha: float | None = None, base_is_residual: bool = False
) -> Adapters | None:
    """The adapters in a file or folder, or None if there are none.

    Parameters
    ----------
    path : str
    drop : sequence of str, optional
        Shell patterns of names of tensors to leave out.
    alpha : float, optional
        For files that may lack it: `load_diffusers`.
    base_is_residual : bool, default False
        As in `load_peft`.

    Raises
    ------
    FormatError
        If the file or folder is damaged.
    ArgumentError
        If there is no such file or folder.
    NotSupportedError
        If a file has an adapter of another kind than pairs of factors.
    """
    path = os.path.normpath(path)
    if not os.path.exists(path):
        raise ArgumentError(f"{path}: no such file or folder")
    folder, name = os.path.split(path)
    if name in (peft.WEIGHTS, mlx.WEIGHTS) and os.path.isfile(os.path.join(folder, peft.CONFIG)):
        path = folder or os.curdir  # the weights alone do not determine the scaling
    with naming(path):
        if os.path.isdir(path):
            is_mlx = os.path.isfile(os.path.join(path, mlx.WEIGHTS))
            return _mlx(path, drop) if is_mlx else _peft(path, drop, base_is_residual)
        return _npz(path) if zipfile.is_zipfile(path) else _file(path, drop, alpha)


def require_adapters(
    path: str, *, drop: Sequence[str] = (), alpha: float | None = None, base_is_residual: bool = False
) -> Adapters:
    """The adapters in a file or folder; the parameters are those of `find_adapters`.

    Raises
    ------
    FormatError
        If there are none, or as in `find_adapters`.
    """
    found = find_adapters(path, drop=drop, alpha=alpha, base_is_residual=base_is_residual)
    if found is None:
        raise FormatError(f"{path}: no adapter found; {EXPECTED}")
    return found


def load_adapter(path: str, *, task: str | None = None, drop: Sequence[str] = ()) -> AdapterWeights:
    """Load one adapter from a file or folder.

    Parameters
    ----------
    path : str
        A PEFT folder, an mlx-lm folder, a file of kohya or diffusers, or a lora_np npz file with a model that has adapters.
    task : str, optional
        A task of MultiLoRA or a named adapter of PEFT. Required if there are several adapters and none is PEFT's "default".
    drop : sequence of str, optional
        Shell patterns of names of tensors to leave out; they are named on standard error.

    Raises
    ------
    FormatError
        If there is no adapter, or if it is damaged; the message names the file and the key.
    ArgumentError
        If the file or the task does not exist, or if there are several adapters and no task is given.
    NotSupportedError
        If the adapter is not a pair of trained factors for each matrix.
    """
    found = require_adapters(path, drop=drop)
    return found.read(found.choose(task))


def load_from_options(path: str, options: argparse.Namespace, *, base: str | None = None) -> AdapterWeights:
    """Load one adapter with the options ``--task``, ``--drop``, ``--alpha`` and ``--base-is-residual``.

    If a base is given, the layers get the names and sizes of its tensors, where the file does not tell them.
    """
    more = {name: getattr(options, name) for name in ("alpha", "base_is_residual") if hasattr(options, name)}
    found = require_adapters(path, drop=options.drop, **more)
    weights = found.read(found.choose(options.task))
    return found.by_base(weights, base) if base is not None and found.by_base is not None else weights


def at_rank(weights: AdapterWeights, rank: int | None, source: str) -> AdapterWeights:
    """`AdapterWeights.at_rank`; errors name the file or folder."""
    with naming(source):
        return weights.at_rank(rank)


def base_config(*sources: AdapterWeights) -> dict[str, Any]:
    """The configuration entries about the base model on which all sources agree."""
    first, *others = (source.config for source in sources)
    return {
        name: first[name]
        for name in BASE_ENTRIES
        if name in first and all(name in other and other[name] == first[name] for other in others)
    }


def with_adapter(model: Layer, folder: str, drop: Sequence[str] = ()) -> Layer:
    """A model with the adapters of a PEFT folder. Dropped tensors are named on standard error."""
    with naming(folder):
        adapted = peft.apply_peft(model, folder, drop=drop)
        for place in peft.peft_adapters(folder).values() if drop else ():
            _say_dropped(folder, peft.load_peft(place, drop=drop))
    return adapted


def _say_dropped(source: str, weights: AdapterWeights) -> None:
    for key in weights.dropped:
        print(f"lora-np: {printable(source)}: dropped {printable(key)}", file=sys.stderr)


def dropped(*sources: AdapterWeights) -> list[str]:
    """The tensors that ``--drop`` has left out, by name."""
    return list(dict.fromkeys(key for source in sources for key in source.dropped))


# ---------------------------------------------------------------- one function for each format


def _peft(folder: str, drop: Sequence[str], base_is_residual: bool) -> Adapters | None:
    try:
        folders = peft.peft_adapters(folder)
    except FormatError:
        return None
    if folders == {DEFAULT: folder}:
        folders = {UNNAMED: folder}
    kind = "PEFT adapter" if UNNAMED in folders else "PEFT adapters"
    files = {name: os.path.join(place, peft.WEIGHTS) for name, place in folders.items()}

    def load(name: str) -> AdapterWeights:
        return peft.load_peft(folders[name], drop=drop, base_is_residual=base_is_residual)

    vera = any(peft.peft_type(place) == "VERA" for place in folders.values())
    return Adapters(
        folder, kind, tuple(folders), load, files, by_base=with_base_sizes if vera else None, note=VERA if vera else None
    )


def _mlx(folder: str, drop: Sequence[str]) -> Adapters:
    files = {UNNAMED: os.path.join(folder, mlx.WEIGHTS)}
    return Adapters(folder, "mlx-lm adapter", (UNNAMED,), lambda _: mlx.load_mlx(folder, drop=drop), files)


def _file(file: str, drop: Sequence[str], alpha: float | None) -> Adapters | None:
    """The adapter in a safetensors file: kohya's, diffusers', or that of a PEFT folder without its configuration."""
    try:
        with SafetensorsFile(file) as tensors:
            kind, other = readable_kind(tensors), other_kind(tensors)
    except FormatError as error:
        if file.endswith(".safetensors"):
            raise
        raise FormatError(f"{file}: unsupported format; {EXPECTED}; {peft.PICKLE}") from error
    if kind is None and other is not None:
        raise NotSupportedError(f"{file}: its kind is {other}, which is not a pair of factors for each matrix")
    if kind is None:
        return None
    files = {UNNAMED: file}
    if kind == "kohya":
        found = Adapters(file, "kohya adapter", (UNNAMED,), lambda _: kohya.load_kohya(file, drop=drop), files)
        return replace(found, by_base=with_tensor_names)

    def load(_: str) -> AdapterWeights:
        return diffusers.load_diffusers(file, alpha=alpha, drop=drop)

    note = ASSUMED if alpha is None and diffusers.lacks_alpha(file) else None
    if kind == "PEFT":
        return Adapters(file, f"PEFT weights without {peft.CONFIG}", (UNNAMED,), load, files, note=note)
    return Adapters(file, "diffusers adapter", (UNNAMED,), load, files, note=note, by_base=with_tensor_names)


def _npz(file: str) -> Adapters:
    model = npz.load_layer(file)
    tasks = dict.fromkeys(
        task for layer in model.walk().values() if isinstance(layer, MultiLoRAAdapter) for task in layer.task_adapters
    )
    kind = f"{type(model).__name__} model in an npz file"
    names = tuple(tasks) or (UNNAMED,)
    return Adapters(file, kind, names, lambda name: extract(model, task=name or None), model=model)
