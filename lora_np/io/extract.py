"""Extract an adapter from two checkpoints: the low-rank part of what training changed.

Notes
-----
The change ``D = W_tuned - W_base`` of a weight, (d_out, d_in), is approximated by the randomised singular value
decomposition of Halko, Martinsson and Tropp (2011): an orthonormal basis Q of the range of ``(D Dᵀ)^q D Ω``, with a random
Ω, contains the leading left singular vectors of D, so ``D ≈ Q Qᵀ D``. In the layout of lora_np, ``Dᵀ ≈ A B`` with
``A = Dᵀ Q`` and ``B = Qᵀ``, of which `lora_np.surgery.truncate` computes the best approximation of each rank. If the rank
of D is at most the given rank, the result is exact up to rounding. D is never in memory: it is computed from both files, a
few rows at a time.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import NamedTuple, final

import numpy as np

from .._typing import RNG, Array, Generator
from .._validation import finite_float, generator, positive_int
from ..errors import ArgumentError, FormatError
from ..factors.surgery import spectrum, truncate
from ..factors.weights import AdapterWeights
from ..layers.lora import LoRALayer
from ..models.names import Names, matching
from ._pieces import rows_within, windows
from .merge import PRECISIONS, checkpoint_files
from .safetensors import SafetensorsFile, TensorInfo, decoded

EMBEDDING = re.compile(r"(.*\.)?([^.]*embed[^.]*|w[tp]e|shared|relative_attention_bias)")
"""The paths of embeddings in the checkpoints of common models: of these, only the rows of the trained tokens change."""

OVERSAMPLING = 10
"""The number of random vectors beyond the rank (Halko et al., 2011, section 4.2)."""

ITERATIONS = 2
"""q: how often the basis is multiplied by ``D Dᵀ``, which separates singular values that are close to each other."""

WINDOW = 1 << 20  # elements of D at a time

Path = str | os.PathLike[str]


class ExtractedLayer(NamedTuple):
    """What `extract_adapter` found for one weight."""

    rank: int
    norm: float
    """The Frobenius norm of the whole change."""
    energy: float
    """The fraction of the squared norm that the rank keeps."""


class Extracted(NamedTuple):
    """The result of `extract_adapter`."""

    adapter: AdapterWeights
    layers: dict[str, ExtractedLayer]
    """The measurements, by path."""
    missing: tuple[str, ...]
    """The names of the tensors of the base that the tuned checkpoint lacks."""


def extract_adapter(
    base: Path,
    tuned: Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    max_rank: int | None = None,
    targets: Names = None,
    drop: Iterable[str] = (),
    fan_in_fan_out: bool = False,
    rng: RNG = 0,
    progress: Callable[[str], None] | None = None,
) -> Extracted:
    """Extract an adapter from a base and a checkpoint that was fine-tuned from it.

    Parameters
    ----------
    base, tuned : path
        As for `lora_np.io.merge.checkpoint_files`. Their dtypes may differ.
    rank : int, optional
        The rank of every layer, at most min(input_size, output_size).
    energy : float, optional
        The fraction of the squared Frobenius norm of each change to keep, in (0, 1], instead of a rank. Each layer gets the
        smallest sufficient rank.
    max_rank : int, optional
        The largest rank that `energy` may select.
    targets : names, optional
        The layers whose change is approximated: a regular expression or a sequence of names, as in `lora_np.apply_lora`. By
        default, all matrices named ``<path>.weight`` except embeddings.
    drop : iterable of str, optional
        Shell patterns of the names of changed tensors to leave out; they are listed in `AdapterWeights.dropped`.
    fan_in_fan_out : bool, default False
        Whether weights are stored as (d_in, d_out), as in Conv1D of transformers.
    rng : seed or numpy.random.Generator, default 0
        The source of the random vectors. Equal seeds give equal results.
    progress : callable, optional
        Called with the name of each tensor before it is compared.

    Returns
    -------
    Extracted
        The adapter, with float32 factors, or float64 if a weight is float64. Every other tensor that has changed, and every
        tensor that the base lacks, is in `AdapterWeights.whole`. Unchanged tensors are left out.

    Raises
    ------
    ArgumentError
        If not exactly one of `rank` and `energy` is given, if a value is out of range, if `targets` names no matrix, or if
        the checkpoints do not differ.
    FormatError
        If a file is damaged, the checkpoints have no tensor in common, or a change is not finite.

    Examples
    --------
    >>> import numpy as np, os, tempfile
    >>> from lora_np.io.extract import extract_adapter
    >>> from lora_np.io.safetensors import save_safetensors
    >>> random, folder = np.random.default_rng(0), tempfile.mkdtemp()
    >>> W, D = random.normal(size=(6, 8)), random.normal(size=(6, 2)) @ random.normal(size=(2, 8))  # D has rank 2
    >>> base, tuned = os.path.join(folder, "base.safetensors"), os.path.join(folder, "tuned.safetensors")
    >>> save_safetensors(base, {"up.weight": W})
    >>> save_safetensors(tuned, {"up.weight": W + D})
    >>> found = extract_adapter(base, tuned, energy=0.9999)
    >>> found.layers["up"].rank
    2
    >>> bool(np.allclose(found.adapter.delta("up"), D.T))
    True
    """
    goal = _Goal.of(rank, energy, max_rank)
    random = generator(rng)
    layers: dict[str, LoRALayer] = {}
    measured: dict[str, ExtractedLayer] = {}
    whole: dict[str, Array] = {}
    dropped: list[str] = []
    with _Checkpoint.open(base) as old, _Checkpoint.open(tuned) as new:
        chosen = _chosen(old, new, targets)
        for key in _changed(old, new, progress):
            path = key.removesuffix(".weight")
            if any(fnmatchcase(key, pattern) for pattern in drop):
                dropped.append(key)
            elif path in chosen:
                change = _Change(old.files[key], new.files[key], key, fan_in_fan_out)
                layers[path], measured[path] = _approximated(change, goal, random)
            else:
                whole[key] = np.array(new.files[key][key])
        missing = tuple(sorted(old.files.keys() - new.files.keys()))
    if not layers and not whole and not dropped:
        raise ArgumentError(f"tuned must differ from the base, but all tensors of {os.fspath(tuned)} are those of the base")
    return Extracted(AdapterWeights(layers, whole=whole, dropped=tuple(dropped)), measured, missing)


# ---------------------------------------------------------------- the randomised decomposition


class _Goal(NamedTuple):
    """How the rank of a layer is chosen: the smallest that keeps an energy, or else the limit."""

    limit: int | None
    energy: float

    @classmethod
    def of(cls, rank: int | None, energy: float | None, max_rank: int | None) -> _Goal:
        if (rank is None) == (energy is None):
            raise ArgumentError(f"exactly one of rank and energy must be given, got rank={rank!r}, energy={energy!r}")
        if rank is not None:
            if max_rank is not None:
                raise ArgumentError(f"max_rank requires energy instead of rank, got max_rank={max_rank!r}")
            return cls(positive_int("rank", rank), math.inf)
        share = finite_float("energy", energy)
        if not 0 < share <= 1:
            raise ArgumentError(f"energy must lie in (0, 1], got {share}")
        return cls(None if max_rank is None else positive_int("max_rank", max_rank), share)


def _approximated(change: _Change, goal: _Goal, random: Generator) -> tuple[LoRALayer, ExtractedLayer]:
    """The best approximation that reaches the goal, from a basis that doubles until it does."""
    full = min(change.shape)
    limit = full if goal.limit is None else min(goal.limit, full)
    width = limit if goal.energy > 1 else min(8, limit)
    while True:
        basis = min(width + OVERSAMPLING, full)
        layer = _in_basis(change, basis, random)
        total = change.squares if basis < full else float((spectrum(layer) ** 2).sum())
        energies = np.cumsum(spectrum(layer)[:width] ** 2) / total
        enough = energies >= goal.energy
        if width == limit or enough.any():
            break
        width = min(2 * width, limit)
    rank = 1 + int(enough.argmax()) if enough.any() else width
    kept = truncate(layer, rank=rank)
    dtype = np.float64 if change.is_double else np.float32
    narrow = LoRALayer.from_factors(kept.matrix_a.astype(dtype), kept.matrix_b.astype(dtype), kept.alpha)
    return narrow, ExtractedLayer(rank, math.sqrt(change.squares), min(1.0, float(energies[rank - 1])))


def _in_basis(change: _Change, width: int, random: Generator) -> LoRALayer:
    """The change projected to a basis of its leading left singular vectors: ``Dᵀ ≈ (Dᵀ Q) Qᵀ``."""
    Z = random.standard_normal((change.shape[1], width))
    for _ in range(ITERATIONS + 1):
        Q = np.linalg.qr(change.times(Z))[0]  # (out, in) @ (in, k) -> (out, k)
        A = change.transposed_times(Q)  # (in, out) @ (out, k) -> (in, k)
        Z = np.linalg.qr(A)[0]
    return LoRALayer.from_factors(A, Q.T)


# ---------------------------------------------------------------- what is compared


@final
class _Change:
    """``D = W_tuned - W_base`` in float64, a few rows at a time; transposed if weights are stored as (d_in, d_out)."""

    def __init__(self, old: SafetensorsFile, new: SafetensorsFile, key: str, transposed: bool) -> None:
        self._files, self._key, self._transposed = (old, new), key, transposed
        self._stored = old.info(key).shape
        self.shape = self._stored[::-1] if transposed else self._stored
        self.is_double = "F64" in (old.info(key).dtype, new.info(key).dtype)
        self.squares = sum(float((D * D).sum()) for _, D in self._windows())
        """The squared Frobenius norm."""
        if not math.isfinite(self.squares):
            raise FormatError(f"{new.path}: the difference of {key} from the base must be finite")

    def times(self, Z: Array) -> Array:
        """``D Z``."""
        return self._by_columns(Z) if self._transposed else self._by_rows(Z)

    def transposed_times(self, Q: Array) -> Array:
        """``Dᵀ Q``."""
        return self._by_rows(Q) if self._transposed else self._by_columns(Q)

    def _by_rows(self, right: Array) -> Array:
        """The stored matrix times another."""
        return np.vstack([D @ right for _, D in self._windows()])  # (rows, columns) @ (columns, k) -> (rows, k)

    def _by_columns(self, right: Array) -> Array:
        """The transposed stored matrix times another."""
        result = np.zeros((self._stored[1], right.shape[1]))
        for start, D in self._windows():
            result += D.T @ right[start : start + len(D)]  # (columns, rows) @ (rows, k) -> (columns, k)
        return result

    def _windows(self) -> Iterator[tuple[int, Array]]:
        """Consecutive rows of the stored matrix, with the number of the first."""
        rows, columns = self._stored
        for start, stop in windows(rows, rows_within(WINDOW, columns)):
            old, new = (
                decoded(file.raw(self._key, start * columns, stop * columns), file.info(self._key).dtype).astype(np.float64)
                for file in self._files
            )
            with np.errstate(invalid="ignore", over="ignore"):
                new -= old
            yield start, new.reshape(-1, columns)


@final
class _Checkpoint:
    """The open files of a checkpoint, by tensor."""

    def __init__(self, path: str, files: Mapping[str, SafetensorsFile]) -> None:
        self.path, self.files = path, files

    def info(self, key: str) -> TensorInfo:
        return self.files[key].info(key)

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path) -> Iterator[_Checkpoint]:
        with contextlib.ExitStack() as stack:
            opened = [stack.enter_context(SafetensorsFile(file)) for file in checkpoint_files(path).values()]
            yield cls(os.fspath(path), {key: file for file in opened for key in file})


def _chosen(old: _Checkpoint, new: _Checkpoint, targets: Names) -> set[str]:
    """The paths of the weights whose change is approximated."""
    if not old.files.keys() & new.files.keys():
        raise FormatError(f"{new.path}: has no tensor in common with {old.path}")
    paths = [
        key.removesuffix(".weight")
        for key in sorted(new.files)
        if key.endswith(".weight") and key in old.files and _is_matrix(old.info(key)) and _is_matrix(new.info(key))
    ]
    same = [path for path in paths if old.info(f"{path}.weight").shape == new.info(f"{path}.weight").shape]
    if targets is not None:
        return set(matching("targets", targets, same))
    return {path for path in same if not EMBEDDING.fullmatch(path)}


def _is_matrix(info: TensorInfo) -> bool:
    return len(info.shape) == 2 and info.dtype in PRECISIONS


def _changed(old: _Checkpoint, new: _Checkpoint, progress: Callable[[str], None] | None) -> Iterator[str]:
    """The names of the tensors that differ from those of the base, or that it lacks."""
    for key in sorted(new.files):
        if progress:
            progress(key)
        if key not in old.files or not _unchanged(old, new, key):
            yield key


def _unchanged(old: _Checkpoint, new: _Checkpoint, key: str) -> bool:
    """Whether a tensor has the same shape and values in both checkpoints, whatever its dtypes."""
    pieces = (
        [decoded(one.files[key].raw(key, start, start + WINDOW), one.info(key).dtype) for one in (old, new)]
        for start in range(0, new.info(key).size, WINDOW)
    )
    return old.info(key).shape == new.info(key).shape and all(
        np.array_equal(before, after, equal_nan=before.dtype.kind == "f") for before, after in pieces
    )
