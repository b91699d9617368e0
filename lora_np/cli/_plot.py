"""The plot of ``inspect``: singular values by component."""

import argparse
import warnings
from collections.abc import Mapping
from typing import Any, BinaryIO

from .._typing import Array
from ..errors import NotSupportedError
from ._text import printable

FORMATS = (".png", ".svg")


def figure_format(path: str) -> str:
    """Parse the path of a figure, whose extension must be a supported format."""
    if not path.lower().endswith(FORMATS):
        raise argparse.ArgumentTypeError(f"must end in {' or '.join(FORMATS)}, got {path!r}")
    return path


def draw_spectra(spectra: Mapping[str, Array], file: BinaryIO, path: str) -> None:
    """Plot singular values by layer name, in the format given by the extension of the path.

    Raises
    ------
    NotSupportedError
        If matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NotSupportedError('--plot requires matplotlib: pip install "lora_np[plot]"') from error
    from .. import plot

    is_svg = path.lower().endswith(".svg")
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.hashsalt": "lora_np"}):
        warnings.filterwarnings("ignore", "Glyph")  # characters missing from the font are drawn as boxes
        figure = Figure(figsize=(8, 5), layout="constrained")
        plot.spectra({printable(name): sigma for name, sigma in spectra.items()}, ax=figure.subplots())
        metadata: dict[str, Any] = {"Date": None} if is_svg else {}  # without it, equal spectra give equal bytes
        figure.savefig(file, format="svg" if is_svg else "png", dpi=150, metadata=metadata, bbox_inches="tight")
