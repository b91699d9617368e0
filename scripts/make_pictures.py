"""Make the pictures of docs/pictures.md: SVG files, drawn by lora_np.plot from real runs on the handwritten digits.

Takes less than a minute on one core. Equal numbers give equal bytes.

    python -m pip install -e ".[demo]"
    python scripts/make_pictures.py --out docs/pictures
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeAlias

import matplotlib
import numpy as np
from lora_np.surgery import canonicalize
from matplotlib.figure import Figure

from lora_np import (
    AffineLayer,
    DenseLayer,
    DyLoRAAdapter,
    Layer,
    LoRAAdapterBase,
    LoRALayer,
    MultiLoRAAdapter,
    StandardLoRAAdapter,
    apply_lora,
    has_multi_lora_adapters,
    plot,
    select_task,
)
from lora_np._archive import atomic_file
from lora_np.terminal.progress import bar
from lora_np.demo import experiment
from lora_np.demo.experiment import VIEWS, Digits, Settings, score, train

LAYER = "hidden2"
"""The one whose adapter is drawn: 128 -> 128."""

Factory: TypeAlias = Callable[[AffineLayer, np.random.Generator], LoRAAdapterBase]

SMALL = 2
"""The rank at which the ways to get there are compared."""

MARGIN = 0.15
"""In inches, around each drawing."""

LOOK = {
    "svg.hashsalt": "lora_np",
    "svg.fonttype": "none",
    "figure.facecolor": "white",
    "figure.constrained_layout.h_pad": MARGIN,
    "figure.constrained_layout.w_pad": MARGIN,
}
"""Text stays text, and each picture has its own background, on dark pages too."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the SVG files go")
    directory = parser.parse_args().out
    directory.mkdir(parents=True, exist_ok=True)
    settings = Settings()
    with matplotlib.rc_context(LOOK):
        for name, figure in [*drawings(), *measurements(settings)]:
            with atomic_file(directory / f"{name}.svg") as file:
                figure.savefig(file, format="svg", metadata={"Date": None})
            print(directory / f"{name}.svg")


def drawings() -> Iterator[tuple[str, Figure]]:
    """What needs no training."""
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


def measurements(settings: Settings) -> Iterator[tuple[str, Figure]]:
    """What is measured on models that are trained here."""
    digits = Digits(settings)
    _, base = experiment.train_base(digits, settings, bar)
    ranks, dynamic = experiment.compare_ranks(base, digits, settings, bar)
    yield "rank-quality", rank_quality(ranks)
    yield "spectra", spectra(dynamic, *(lora(base, digits, settings, rank) for rank in (settings.ranks[-1], SMALL)))
    yield "interference", interference(base, digits, settings)


def rank_quality(result: experiment.RankResult) -> Figure:
    curves = {
        curve.method: {rank: 100 * score.accuracy for rank, score in zip(result.ranks, curve.scores, strict=True)}
        for curve in result.curves
    }
    ax = plot.rank_quality(curves, quality="test accuracy in %")
    ax.set_title("Rotated and inverted digits, on a base that knows upright ones")
    return ax.figure


# ---------------------------------------------------------------- spectra


def lora(base: Layer, digits: Digits, settings: Settings, rank: int) -> Layer:
    """A LoRA trained for one rank: the same as in the comparison of ranks."""
    rng = settings.generator(experiment.LORA, rank)
    model = apply_lora(base, lambda layer: StandardLoRAAdapter(layer, rank, rng=rng))
    rows = digits.training(experiment.shifted)
    train(model, rows, settings.rank_epochs, settings.learning_rate, settings.batch_size, rng, bar(f"LoRA of rank {rank}"))
    return model


def spectra(dynamic: Layer, large: Layer, small: Layer) -> Figure:
    branches = [model.walk()[LAYER].lora_layer for model in (dynamic, large, small)]
    one, full, dedicated = branches
    name = f"LoRA of rank {full.rank}"
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    plot.spectra({"DyLoRA": one, name: full}, ax=left)
    cuts = {
        "DyLoRA": cut(one),
        f"LoRA of rank {SMALL}": dedicated,
        f"{name}, cut": cut(full),
        f"{name}, best cut": cut(canonicalize(full)),
    }
    plot.spectra(cuts, ax=right)
    left.set_title(f"at rank {full.rank}")
    right.set(title=f"at rank {SMALL}", ylabel="")
    return figure


def cut(layer: LoRALayer) -> LoRALayer:
    """Its first components, as they are."""
    return LoRALayer.from_factors(layer.matrix_a[:, :SMALL], layer.matrix_b[:SMALL], SMALL * layer.scaling)


# ---------------------------------------------------------------- one task after the other


def interference(base: Layer, digits: Digits, settings: Settings) -> Figure:
    rank, first, *others = settings.task_rank, *VIEWS

    def one_branch(layer: AffineLayer, rng: np.random.Generator) -> StandardLoRAAdapter:
        return StandardLoRAAdapter(layer, rank, rng=rng)

    def a_branch_each(layer: AffineLayer, rng: np.random.Generator) -> MultiLoRAAdapter:
        adapter = MultiLoRAAdapter(layer, first, rank, rng=rng)
        for task in others:
            adapter.add_task(task, rank)
        return adapter

    rows = [f"after '{task}'" for task in VIEWS]
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    before = one_after_the_other(base, one_branch, digits, settings)
    after = one_after_the_other(base, a_branch_each, digits, settings)
    plot.task_matrix(before, rows, list(VIEWS), quality="one LoRA for all tasks", ax=left)
    plot.task_matrix(after, rows, list(VIEWS), quality="MultiLoRA: a branch for each task", ax=right)
    figure.supxlabel("accuracy on the test digits of each task", fontsize="medium")
    return figure


def one_after_the_other(base: Layer, adapter: Factory, digits: Digits, settings: Settings) -> np.ndarray:
    """The accuracy on every task (columns) after the training of each (rows)."""
    budget = settings.task_epochs, settings.learning_rate, settings.batch_size
    rng = settings.generator(experiment.TASKS)  # as in the demo
    model = apply_lora(base, lambda layer: adapter(layer, rng))
    choose = partial(select_task, model) if has_multi_lora_adapters(model) else lambda task: None
    accuracies = np.zeros((len(VIEWS), len(VIEWS)))
    for i, (task, view) in enumerate(VIEWS.items()):
        choose(task)
        train(model, digits.training(view), *budget, rng, bar(f"task {task}"))
        for j, (other, other_view) in enumerate(VIEWS.items()):
            choose(other)
            accuracies[i, j] = score(model, digits.testing(other_view)).accuracy
    return accuracies


if __name__ == "__main__":
    main()
