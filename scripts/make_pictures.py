"""Make the SVG files of docs/pictures.md: lora_np.plot, applied to models trained on the handwritten digits.

Takes less than a minute on one core. Equal numbers give identical files.

    python -m pip install -e ".[demo]"
    python scripts/make_pictures.py --out docs/pictures
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from lora_np import (
    Adam,
    DenseLayer,
    DyLoRAAdapter,
    Layer,
    LoRALayer,
    MultiLoRAAdapter,
    Sequential,
    SoftmaxCrossEntropy,
    StandardLoRAAdapter,
    fit,
    plot,
    relu,
    select_task,
)
from lora_np._archive import atomic_file
from lora_np.data import load_digits
from lora_np.demo.base import train_base
from lora_np.demo.digits import VIEWS, Digits
from lora_np.demo.ranks import RankResult, compare_ranks, train_lora, with_lora
from lora_np.demo.settings import Settings, Stream
from lora_np.demo.tasks import with_multilora
from lora_np.demo.training import score, train
from lora_np.surgery import canonicalize
from lora_np.terminal.progress import bar

LAYER = "hidden2"
"""The layer whose adapter is plotted: 128 -> 128."""

SMALL = 2
"""The rank at which the spectra of the methods are compared."""

MARGIN = 0.15
"""In inches, around each plot."""

LOOK = {
    "svg.hashsalt": "lora_np",
    "svg.fonttype": "none",
    "figure.facecolor": "white",
    "figure.constrained_layout.h_pad": MARGIN,
    "figure.constrained_layout.w_pad": MARGIN,
}
"""Text remains text. The background is set explicitly: on dark pages, site.css inverts the lightness."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory for the SVG files")
    directory = parser.parse_args().out
    directory.mkdir(parents=True, exist_ok=True)
    settings = Settings()
    with matplotlib.rc_context(LOOK):
        for name, figure in [*diagrams(), *measurements(settings)]:
            with atomic_file(directory / f"{name}.svg") as file:
                figure.savefig(file, format="svg", metadata={"Date": None})
            print(directory / f"{name}.svg")


def diagrams() -> Iterator[tuple[str, Figure]]:
    """The figures that need no training."""
    base = DenseLayer(128, 128, rng=0)
    dynamic = DyLoRAAdapter(base, 8, [1, 2, 4, 8], rng=0)
    shared = MultiLoRAAdapter(base, "rotated", 4, rng=0)
    for task in ("inverted", "mirrored"):
        shared.add_task(task, 4)

    figure = Figure(figsize=(10, 3.1), layout="constrained")
    for ax, rank in zip(figure.subplots(1, 3), (1, 4, 8), strict=True):
        plot.rank_slices(dynamic, rank=rank, ax=ax)
    yield "slices", figure

    yield "budget", plot.budget(dynamic).figure

    dynamic.set_deployment_rank(SMALL)
    figure = Figure(figsize=(8, 9.6), layout="constrained")
    for ax, adapter in zip(figure.subplots(3), (StandardLoRAAdapter(base, 4, rng=0), dynamic, shared), strict=True):
        plot.data_flow(adapter, ax=ax)
    yield "data-flow", figure

    yield "history", history()


def history() -> Figure:
    """A training that overfits: 200 digits, and a network that can learn them by heart."""
    images, labels = load_digits()
    inputs = images.reshape(len(images), -1)
    order = np.random.default_rng(0).permutation(len(labels))
    few, held_out = order[:200], order[200:600]
    model = Sequential({"hidden": DenseLayer(64, 64, relu, rng=1), "output": DenseLayer(64, 10, rng=2)})
    record = fit(
        model,
        (inputs[few], labels[few]),
        SoftmaxCrossEntropy(),
        Adam(0.05),
        epochs=30,
        batch_size=20,
        rng=3,
        validation=(inputs[held_out], labels[held_out]),
    )
    return plot.history(record).figure


def measurements(settings: Settings) -> Iterator[tuple[str, Figure]]:
    """The figures that need trained models."""
    digits = Digits(settings)
    _, base = train_base(digits, settings, bar)
    ranks, dynamic = compare_ranks(base, digits, settings, bar)
    yield "rank-quality", rank_quality(ranks)
    large, small = (train_lora(base, digits, settings, rank, bar)[0] for rank in (settings.ranks[-1], SMALL))
    yield "spectra", spectra(dynamic, large, small)
    yield "interference", interference(base, digits, settings)


def rank_quality(result: RankResult) -> Figure:
    curves = {
        curve.method: {rank: 100 * score.accuracy for rank, score in zip(result.ranks, curve.scores, strict=True)}
        for curve in result.curves
    }
    ax = plot.rank_quality(curves, quality="test accuracy (%)")
    ax.set_title("Rotated, inverted digits, on a base trained on upright ones")
    return ax.figure


# ---------------------------------------------------------------- spectra


def spectra(dynamic: Layer, large: Layer, small: Layer) -> Figure:
    branches = [model.walk()[LAYER].lora_layer for model in (dynamic, large, small)]
    one, full, dedicated = branches
    name = f"rank-{full.rank} LoRA"
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    plot.spectra({"DyLoRA": one, name: full}, ax=left)
    reduced = {
        "DyLoRA": truncated(one),
        f"rank-{SMALL} LoRA": dedicated,
        f"{name}, truncated": truncated(full),
        f"{name}, truncated by SVD": truncated(canonicalize(full)),
    }
    plot.spectra(reduced, ax=right)
    left.set_title(f"at rank {full.rank}")
    right.set(title=f"at rank {SMALL}", ylabel="")
    return figure


def truncated(layer: LoRALayer) -> LoRALayer:
    """The leading components of a layer."""
    return LoRALayer.from_factors(layer.matrix_a[:, :SMALL], layer.matrix_b[:SMALL], SMALL * layer.scaling)


# ---------------------------------------------------------------- one task after another


def interference(base: Layer, digits: Digits, settings: Settings) -> Figure:
    rows = [f"after '{task}'" for task in VIEWS]
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)

    rng = settings.generator(Stream.TASKS)
    shared = with_lora(base, settings.task_rank, rng)
    values = train_in_turn(shared, lambda task: None, digits, settings, rng)
    plot.task_matrix(values, rows, list(VIEWS), quality="one LoRA for all tasks", ax=left)

    rng = settings.generator(Stream.TASKS)
    separate = with_multilora(base, settings.task_rank, rng)
    values = train_in_turn(separate, partial(select_task, separate), digits, settings, rng)
    plot.task_matrix(values, rows, list(VIEWS), quality="MultiLoRA: one branch per task", ax=right)

    figure.supxlabel("accuracy on the test digits of each task", fontsize="medium")
    return figure


def train_in_turn(
    model: Layer, select: Callable[[str], object], digits: Digits, settings: Settings, rng: np.random.Generator
) -> np.ndarray:
    """The accuracy on every task (columns) after training each one (rows)."""
    accuracies = np.zeros((len(VIEWS), len(VIEWS)))
    for i, (task, view) in enumerate(VIEWS.items()):
        select(task)
        train(model, digits.training(view), settings.task_budget, rng, bar(f"task {task}"))
        for j, (other, other_view) in enumerate(VIEWS.items()):
            select(other)
            accuracies[i, j] = score(model, digits.testing(other_view)).accuracy
    return accuracies


if __name__ == "__main__":
    main()
