"""The matrix kernels that NumPy's BLAS uses on this machine."""

from __future__ import annotations

import ctypes
import importlib
from functools import cache
from typing import Any

SMALL_KERNELS = {"SkylakeX": 1_000_000, "Cooperlake": 1_000_000, "SapphireRapids": 1_000_000}
"""OpenBLAS cores with a kernel that copies nothing, and the largest M·N·K that uses it (see small_kernel_permit there)."""


def core_name() -> str:
    """The core for which OpenBLAS chose its kernels, such as ``"Haswell"``; empty if the BLAS does not report it.

    The environment variable ``OPENBLAS_CORETYPE``, which OpenBLAS reads when NumPy is imported, overrides the choice.
    """
    function = _function("get_corename")
    if function is None:
        return ""
    function.restype = ctypes.c_char_p
    return str(function().decode())


def threads() -> int:
    """The number of threads that OpenBLAS uses for large products; 1 if the BLAS does not report it."""
    function = _function("get_num_threads")
    return 1 if function is None else max(1, function())


def small_kernel_limit() -> int:
    """The largest M·N·K of a product that needs no packing; 0 if no such kernel is known."""
    return SMALL_KERNELS.get(core_name(), 0)


@cache
def _function(name: str) -> Any:
    """A function of the OpenBLAS that NumPy is linked to; None if it is another BLAS."""
    extension = importlib.import_module("numpy._core._multiarray_umath")
    library = ctypes.CDLL(extension.__file__)  # also finds the symbols of the BLAS that NumPy is linked to
    symbols = f"scipy_openblas_{name}64_", f"scipy_openblas_{name}", f"openblas_{name}"
    return next((found for symbol in symbols if (found := getattr(library, symbol, None)) is not None), None)
