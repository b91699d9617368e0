"""What the commands report about low-rank layers, measured in float64 from the factors."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .._typing import Array
from ..errors import ArgumentError
from ..factors.surgery import spectrum
from ..factors.weights import AdapterWeights
from ..layers.lora import LoRALayer
from ._adapters import naming
from ._text import number, printable

HEADER = ("layer", "in", "out", "rank", "alpha", "scaling")


def summary(path: str, layer: LoRALayer) -> dict[str, Any]:
    """The path, sizes and scaling of a layer, for JSON."""
    return {
        "path": path,
        "input_size": layer.input_size,
        "output_size": layer.output_size,
        "rank": layer.rank,
        "alpha": layer.alpha,
        "scaling": layer.scaling,
    }


def summary_cells(report: dict[str, Any]) -> list[str]:
    """The table cells of a `summary`, in the order of `HEADER`."""
    sizes = [str(report[name]) for name in ("input_size", "output_size", "rank")]
    return [printable(report["path"]), *sizes, number(report["alpha"]), number(report["scaling"])]


def kernel_text(kernel: Sequence[int]) -> str:
    """A kernel in words."""
    return f"convolution, kernel {' x '.join(map(str, kernel))}" if kernel else "dense"


def cast(layer: LoRALayer, dtype: type) -> LoRALayer:
    """The layer in another dtype."""
    with np.errstate(over="ignore"):
        A: Array = layer.matrix_a.astype(dtype)
        B: Array = layer.matrix_b.astype(dtype)
    return LoRALayer.from_factors(A, B, layer.alpha, scaling=layer.scaling_rule, **layer.dropout_choices)


def singular_values(layer: LoRALayer) -> Array:
    """The singular values of the update in descending order; all NaN if the update is not finite."""
    try:
        return spectrum(cast(layer, np.float64))
    except ArgumentError:
        return np.full(min(layer.rank, layer.input_size, layer.output_size), np.nan)


def spectra(weights: AdapterWeights, source: str) -> dict[str, Array]:
    """The singular values of every layer.

    Raises
    ------
    ArgumentError
        If an update is not finite; the message names the source and the layer.
    """
    found = {}
    for path, layer in weights.layers.items():
        with naming(f"{source}: {path}"):
            found[path] = spectrum(cast(layer, np.float64))
    return found


def frobenius(array: Array) -> float:
    """The Frobenius norm in float64. The norm of an update equals the norm of its singular values."""
    with np.errstate(all="ignore"):
        return float(np.linalg.norm(np.asarray(array, np.float64)))


def in_float64(weights: AdapterWeights) -> AdapterWeights:
    """The layers in float64, so that measured errors do not include float32 rounding."""
    return _mapped(weights, lambda _, layer: cast(layer, np.float64))


def in_dtypes_of(weights: AdapterWeights, *sources: AdapterWeights) -> AdapterWeights:
    """The layers, in float32 if all sources of the layer are float32."""

    def narrowed(path: str, layer: LoRALayer) -> LoRALayer:
        dtypes = {source.layers[path].dtype for source in sources if path in source.layers}
        return cast(layer, np.float32) if dtypes == {np.dtype(np.float32)} else layer

    return _mapped(weights, narrowed)


def _mapped(weights: AdapterWeights, change: Callable[[str, LoRALayer], LoRALayer]) -> AdapterWeights:
    return replace(weights, layers={path: change(path, layer) for path, layer in weights.layers.items()})
