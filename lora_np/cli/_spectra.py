"""What the verbs measure of low-rank layers, in float64 and from the factors."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from .._typing import Array
from ..errors import FormatError
from ..factors.surgery import spectrum
from ..factors.weights import AdapterWeights
from ..layers.lora import LoRALayer


def cast(layer: LoRALayer, dtype: type) -> LoRALayer:
    """The layer in another dtype."""
    with np.errstate(over="ignore"):
        A: Array = layer.matrix_a.astype(dtype)
        B: Array = layer.matrix_b.astype(dtype)
    return LoRALayer.from_factors(A, B, layer.alpha, scaling=layer.scaling_rule)


def singular_values(layer: LoRALayer) -> Array:
    """The singular values of the update, descending; NaN where they are no finite numbers."""
    # LAPACK may never return from the decomposition of a matrix that holds NaN or infinity.
    if not np.isfinite(layer.scaling * frobenius(layer.matrix_a) * frobenius(layer.matrix_b)):
        return np.full(min(layer.rank, layer.input_size, layer.output_size), np.nan)
    return spectrum(cast(layer, np.float64))


def frobenius(array: Array) -> float:
    """The Frobenius norm, in float64; that of an update is the one of its singular values."""
    with np.errstate(all="ignore"):
        return float(np.linalg.norm(np.asarray(array, np.float64)))


def finite_spectra(weights: AdapterWeights, path: str) -> dict[str, Array]:
    """The singular values of every layer, all of which must be finite."""
    spectra = {name: singular_values(layer) for name, layer in weights.layers.items()}
    for name, sigma in spectra.items():
        if np.isnan(sigma).any():
            raise FormatError(f"{path}: {name}: its factors hold NaN, infinity, or numbers whose product is too large")
    return spectra


def in_float64(weights: AdapterWeights) -> AdapterWeights:
    """The layers in float64, so that what is measured of a result is not the rounding of float32."""
    return _mapped(weights, lambda _, layer: cast(layer, np.float64))


def in_dtypes_of(weights: AdapterWeights, *sources: AdapterWeights) -> AdapterWeights:
    """The layers in float32 where all sources have float32."""

    def narrowed(path: str, layer: LoRALayer) -> LoRALayer:
        dtypes = {source.layers[path].dtype for source in sources if path in source.layers}
        return cast(layer, np.float32) if dtypes == {np.dtype(np.float32)} else layer

    return _mapped(weights, narrowed)


def _mapped(weights: AdapterWeights, change: Callable[[str, LoRALayer], LoRALayer]) -> AdapterWeights:
    return replace(weights, layers={path: change(path, layer) for path, layer in weights.layers.items()})
