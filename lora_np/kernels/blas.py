"""The matrix kernels that NumPy's BLAS uses on this machine."""

from __future__ import annotations

import ctypes
import importlib

SMALL_KERNELS = {"SkylakeX": 1_000_000, "Cooperlake": 1_000_000, "SapphireRapids": 1_000_000}
"""OpenBLAS cores with a kernel that copies nothing, and the largest M·N·K that uses it (see small_kernel_permit there)."""


def core_name() -> str:
    """The core for which OpenBLAS chose its kernels, such as ``"Haswell"``; empty if the BLAS does not report it.

    The environment variable ``OPENBLAS_CORETYPE``, which OpenBLAS reads when NumPy is imported, overrides the choice.
    """
    extension = importlib.import_module("numpy._core._multiarray_umath")
    library = ctypes.CDLL(extension.__file__)  # also finds the symbols of the BLAS that NumPy is linked to
    for symbol in ("scipy_openblas_get_corename64_", "scipy_openblas_get_corename", "openblas_get_corename"):
        function = getattr(library, symbol, None)
        if function is not None:
            function.restype = ctypes.c_char_p
            return str(function().decode())
    return ""


def small_kernel_limit() -> int:
    """The largest M·N·K of a product that needs no packing; 0 if no such kernel is known."""
    return SMALL_KERNELS.get(core_name(), 0)
