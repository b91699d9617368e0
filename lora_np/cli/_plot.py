"""The picture of `inspect`: singular values by component."""

import argparse
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from .._typing import Array
from ..errors import NotSupportedError
from ._text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".svg")

# Okabe and Ito's colours, which the colour-blind tell apart, without the yellow, which is too pale on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
STYLES = (("o", "-"), ("s", "--"))
MOST_NAMED = len(COLOURS) * len(STYLES)
"""Up to here each layer has a colour, a marker and a line in the legend; beyond, the colour is its place in the order."""

MOST_TICKS = 20

ROUNDING = 1e-14
"""The part of the largest singular value below which float64 cannot tell another one from zero."""


def figure_format(path: str) -> str:
    """The path, which must end in a picture format."""
    if not path.lower().endswith(FORMATS):
        raise argparse.ArgumentTypeError(f"must end in {' or '.join(FORMATS)}, got {path!r}")
    return path


def draw_spectra(spectra: Mapping[str, Array], file: BinaryIO, path: str) -> None:
    """Draw the singular values of layers, by name, in the format that the path ends in.

    Raises
    ------
    NotSupportedError
        There is no matplotlib.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise NotSupportedError('--plot needs matplotlib; this extra brings it: pip install "lora_np[plot]"') from error
    is_svg = path.lower().endswith(".svg")
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.hashsalt": "lora_np"}):
        warnings.filterwarnings("ignore", "Glyph")  # a letter that the font lacks becomes a box
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.add_subplot()
        # A logarithm has no place for zero, and the rounding that stands for it would squeeze all the rest.
        curves = {_label(name): np.where(sigma > ROUNDING * sigma[0], sigma, np.nan) for name, sigma in spectra.items()}
        _draw(axes, curves)
        axes.set_xlabel("component")
        axes.set_ylabel("singular value of dW = scaling A B")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(which="major", color="#dddddd", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        if any(np.isfinite(curve).any() for curve in curves.values()):
            axes.set_yscale("log")
        metadata: dict[str, Any] = {"Date": None} if is_svg else {}  # equal spectra give equal bytes
        figure.savefig(file, format="svg" if is_svg else "png", dpi=150, metadata=metadata, bbox_inches="tight")


def _draw(axes: "Axes", curves: Mapping[str, Array]) -> None:
    if len(curves) <= MOST_NAMED:
        for position, (label, curve) in enumerate(curves.items()):
            marker, line = STYLES[position // len(COLOURS)]
            colour = COLOURS[position % len(COLOURS)]
            axes.plot(_components(curve), curve, line, marker=marker, markersize=4, color=colour, label=label)
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize="small")
        return
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    scale = ScalarMappable(Normalize(0, len(curves) - 1), colormaps["cividis"])
    colours = scale.to_rgba(np.arange(len(curves)))
    for position, curve in enumerate(curves.values()):
        axes.plot(_components(curve), curve, "-", marker=".", linewidth=0.8, color=colours[position])
    ticks = np.unique(np.linspace(0, len(curves) - 1, min(MOST_TICKS, len(curves))).round().astype(int))
    bar = axes.figure.colorbar(scale, ax=axes, pad=0.02)
    bar.set_ticks(ticks.tolist(), labels=[list(curves)[tick] for tick in ticks], fontsize="x-small")
    bar.ax.invert_yaxis()
    bar.set_label(f"layers in their order, {len(ticks)} of {len(curves)} named", fontsize="small")


def _components(curve: Array) -> Array:
    return np.arange(1, len(curve) + 1)


def _label(name: str) -> str:
    """A name that matplotlib takes as it is: no mathematics between dollar signs, no hidden line for an underscore."""
    text = printable(name).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text or "(the layer itself)"
