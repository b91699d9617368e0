"""Plots: the contents of the artists, the axes they are drawn into, and matplotlib's untouched global state."""

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lora_np import (
    ActivationLayer,
    ArgumentError,
    DenseLayer,
    DoRAAdapter,
    DyLoRAAdapter,
    LoRALayer,
    MultiLoRAAdapter,
    NotSupportedError,
    Sequential,
    StandardLoRAAdapter,
    VeRAAdapter,
    apply_lora,
    relu,
)
from lora_np.surgery import spectrum
from lora_np.training import History

pytest.importorskip("matplotlib")

from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from lora_np import plot
from lora_np.plot._history import running_mean
from lora_np.plot._ranks import PERCENT_TOP
from lora_np.plot._spectra import MOST_LINES, QUANTITY
from lora_np.plot._style import COLOURS, FROZEN, IDLE, LINES, MARKERS, MOST_TICKS, TRAINED, line_style

ROOT = Path(__file__).parents[1]


def lora(n, m, rank, *, seed=0, dtype=np.float64):
    """A low-rank layer whose B is not zero."""
    rng = np.random.default_rng(seed)
    return LoRALayer.from_factors(rng.normal(size=(n, rank)).astype(dtype), rng.normal(size=(rank, m)).astype(dtype))


def dylora(n=6, m=5, max_rank=4, active=(1, 2, 4), **options):
    return DyLoRAAdapter(DenseLayer(n, m, rng=0), max_rank, list(active), rng=0, **options)


def multilora(tasks=("first", "second")):
    adapter = MultiLoRAAdapter(DenseLayer(6, 5, rng=0), tasks[0], 2, rng=0)
    for task in tasks[1:]:
        adapter.add_task(task, 3)
    return adapter


CALLS = {
    "rank_quality": lambda ax: plot.rank_quality({"one": {1: 50.0, 4: 60.0}}, ax=ax),
    "spectra": lambda ax: plot.spectra({"layer": lora(6, 5, 3)}, ax=ax),
    "spectra of many": lambda ax: plot.spectra({str(i): lora(6, 5, 3) for i in range(20)}, ax=ax),
    "history": lambda ax: plot.history(History([3.0, 2.0], [2.5], [(), ()], [1.5]), ax=ax),
    "rank_slices": lambda ax: plot.rank_slices(dylora(), ax=ax),
    "task_matrix": lambda ax: plot.task_matrix([[0.5]], ["a"], ["b"], ax=ax),
    "budget": lambda ax: plot.budget(dylora(), ax=ax),
    "data_flow": lambda ax: plot.data_flow(dylora(), ax=ax),
}


def texts(ax):
    return [text.get_text() for text in ax.texts]


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def ticks(axis):
    return [text.get_text() for text in axis.get_ticklabels()]


def faces(ax, kind):
    return [to_hex(patch.get_facecolor()) for patch in ax.patches if type(patch) is kind]


def svg(ax, path):
    """The plot as SVG; rendering it shows whether matplotlib accepts the names and numbers."""
    ax.figure.savefig(path)
    return path.read_text()


# ---------------------------------------------------------------- every function


def functions():
    return {
        name: value
        for name, value in inspect.getmembers(plot, inspect.isfunction)
        if value.__module__.startswith("lora_np.plot.") and not name.startswith("_")
    }


def test_every_function_is_tested_and_documented():
    assert set(functions()) == {call.partition(" ")[0] for call in CALLS}
    for function in functions().values():
        assert all(f"\n{part}\n" in inspect.getdoc(function) for part in ("Parameters", "Returns", "Raises"))
        assert inspect.signature(function).parameters["ax"].kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_plot_goes_into_the_given_axes_which_are_returned(call, tmp_path):
    figure = Figure(layout="constrained")
    left, right = figure.subplots(1, 2)
    untouched = len(left.get_children())
    assert call(right) is right
    assert right.lines or right.patches or right.images
    assert len(left.get_children()) == untouched
    assert svg(right, tmp_path / "x.svg").startswith("<?xml")


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_without_axes_each_plot_gets_new_ones(call):
    first, second = call(None), call(None)
    assert first.figure is not second.figure


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_object_that_is_not_axes_is_rejected(call):
    with pytest.raises(ArgumentError, match=r"^ax must be matplotlib axes, got <Figure"):
        call(Figure())


GLOBAL_STATE = """
import sys, matplotlib
def settings():
    return {name: matplotlib.rcParams[name] for name in matplotlib.rcParams if name != "backend"}  # it imports pyplot
before = settings()
from tests.test_plot import CALLS
for call in CALLS.values():
    call(None)
print("matplotlib.pyplot" in sys.modules, settings() == before)
"""


def test_neither_pyplot_nor_settings_are_touched():
    result = subprocess.run([sys.executable, "-c", GLOBAL_STATE], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.split() == ["False", "True"], result.stderr


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    for name in [name for name in sys.modules if name.startswith("lora_np.plot")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(NotSupportedError) as caught:
        importlib.import_module("lora_np.plot")
    assert str(caught.value) == 'lora_np.plot needs matplotlib: pip install "lora_np[plot]"'


# ---------------------------------------------------------------- quality by rank


def test_one_curve_per_training_method():
    ax = plot.rank_quality({"one": {4: 60.0, 1: 50.0}, "two": {np.int64(2): 7}}, quality="points")
    one, two = ax.lines
    np.testing.assert_array_equal(one.get_xydata(), [[1, 50], [4, 60]])
    np.testing.assert_array_equal(two.get_xydata(), [[2, 7]])
    assert (one.get_color(), two.get_color()) == COLOURS[:2]
    assert legend(ax) == ["one", "two"]
    assert ax.get_ylabel() == "points"
    assert ax.get_xscale() == "log"
    assert ticks(ax.xaxis) == ["1", "2", "4"]


def test_with_many_ranks_only_powers_of_two_are_labelled():
    ax = plot.rank_quality({"one": dict.fromkeys(range(1, 40), 1.0)})
    assert ticks(ax.xaxis) == ["1", "2", "4", "8", "16", "32"]
    assert len(ax.lines[0].get_xdata()) == 39
    ten = plot.rank_quality({"one": dict.fromkeys(range(1, 11), 1.0)})
    assert ticks(ten.xaxis) == [str(rank) for rank in range(1, 11)]


def test_lines_differ_in_more_than_colour():
    looks = [line_style(i) for i in range(28)]
    assert len({(look["marker"], look["linestyle"]) for look in looks}) == len(MARKERS) * len(LINES) == 28
    ax = plot.rank_quality({str(i): {1: 1.0} for i in range(3)})
    assert [(line.get_marker(), line.get_linestyle()) for line in ax.lines] == [("o", "-"), ("s", "--"), ("v", ":")]


NOTE = "axis does not start at 0"


@pytest.mark.parametrize(
    ("values", "quality", "bottom", "top", "note"),
    [
        ([30.0, 97.0], "accuracy in %", 0, PERCENT_TOP, False),
        ([80.0, 100.0], "accuracy in %", 0, PERCENT_TOP, False),  # a difference of exactly 20 %
        ([80.5, 100.0], "accuracy in %", 79.525, 100.975, True),
        ([95.0, 96.0], "accuracy in %", 94.95, 96.05, True),
        ([30.0, 300.0], "% of the base", 0, 313.5, False),
        ([0.3, 0.9], "loss", 0, 0.93, False),
        ([280.0, 300.0], "loss", 279, 301, True),
        ([0.0, 0.0], "loss", 0, 0.055, False),
        ([50.0, 50.0], "accuracy in %", 0, PERCENT_TOP, False),
        ([-1.0, 2.0], "reward", -1.15, 2.15, False),
        ([np.nan, 0.3, 0.9], "loss", 0, 0.93, False),
    ],
)
def test_the_axis_starts_at_zero_unless_the_values_are_close_together(values, quality, bottom, top, note):
    ax = plot.rank_quality({"one": dict(enumerate(values, 1))}, quality=quality)
    assert ax.get_ylim() == pytest.approx((bottom, top))
    assert texts(ax) == [NOTE] * note


def test_curves_that_are_never_finite_still_have_axes(tmp_path):
    ax = plot.rank_quality({"one": {1: np.nan, 2: np.inf}})
    assert texts(ax) == []
    svg(ax, tmp_path / "x.svg")


def test_the_axis_may_become_logarithmic_afterwards(tmp_path):
    ax = plot.rank_quality({"one": {1: 0.01, 2: 1.0}}, quality="loss")
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    assert 0 < low < 0.01 < 1 < high
    svg(ax, tmp_path / "x.svg")


@pytest.mark.parametrize(
    ("curves", "message"),
    [
        ({}, r"^curves must hold at least one curve, got none$"),
        ({"a": {1: 1.0}, "b": {}}, r"^curves\['b'\] must map at least one rank to its quality, got {}$"),
        ({"a": [1, 2]}, r"^curves\['a'\] must map at least one rank to its quality, got \[1, 2\]$"),
        ({"a": {0: 1.0}}, r"^each rank of curves\['a'\] must be at least 1, got 0$"),
        ({"a": {"1": 1.0, 2: 2.0}}, r"^each rank of curves\['a'\] must be an integer, got '1'$"),
        ({"a": {1: "good"}}, r"^curves\['a'\] must be an array of real numbers"),
    ],
)
def test_invalid_curves_are_rejected(curves, message):
    ax = Figure().subplots()
    with pytest.raises(ArgumentError, match=message):
        plot.rank_quality(curves, ax=ax)
    assert not ax.lines


# ---------------------------------------------------------------- spectra


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_line_is_the_spectrum(dtype):
    layers = {"a": lora(6, 5, 3, dtype=dtype), "b": lora(4, 7, 1, seed=1, dtype=dtype)}
    ax = plot.spectra(layers)
    for line, layer in zip(ax.lines, layers.values(), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), np.arange(1, layer.rank + 1))
        np.testing.assert_array_equal(line.get_ydata(), spectrum(layer))
    assert legend(ax) == ["a", "b"]
    assert ax.get_yscale() == "log"


def test_a_model_is_plotted_as_its_low_rank_layers():
    base = Sequential({"in": DenseLayer(6, 5, relu, rng=0), "out": DenseLayer(5, 3, rng=1)})
    model = apply_lora(base, lambda layer: StandardLoRAAdapter(layer, 2, rng=0))
    assert legend(plot.spectra(model)) == ["in.lora", "out.lora"]
    assert legend(plot.spectra(lora(6, 5, 2))) == ["(the layer itself)"]
    assert legend(plot.spectra(multilora())) == ["tasks.first", "tasks.second"]


def test_known_singular_values_and_zeros_up_to_rounding():
    ax = plot.spectra({"a": [2, 1], "b": np.array([2.0, 1e-3, 1e-15, 0.0])})
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [2, 1])
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), [2, 1e-3, np.nan, np.nan])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_rounding_unit_depends_on_the_dtype(dtype):
    once, other = lora(30, 20, 3, dtype=dtype), lora(3, 20, 3, seed=1, dtype=dtype)
    A = np.hstack([once.matrix_a, once.matrix_a @ other.matrix_a])  # (30, 6), of rank 3
    layer = LoRALayer.from_factors(A, np.vstack([once.matrix_b, other.matrix_b]))
    assert spectrum(layer)[3] > np.finfo(dtype).eps  # from rounding alone
    drawn = plot.spectra({"a": layer}).lines[0].get_ydata()
    np.testing.assert_array_equal(np.isnan(drawn), [False] * 3 + [True] * 3)


def test_new_layers_are_zero_and_get_a_linear_axis(tmp_path):
    ax = plot.spectra({"new": LoRALayer(6, 5, 3, rng=0)})
    assert np.isnan(ax.lines[0].get_ydata()).all()
    assert ax.get_yscale() == "linear"
    svg(ax, tmp_path / "x.svg")


@pytest.mark.parametrize("count", [1, MOST_LINES])
def test_few_layers_are_lines(count):
    ax = plot.spectra({f"layers.{i}": [count - i, 0.5] for i in range(count)})
    assert len(ax.lines) == len(legend(ax)) == count
    assert len(ax.figure.axes) == 1
    assert ax.get_ylabel() == QUANTITY


@pytest.mark.parametrize("count", [MOST_LINES + 1, MOST_TICKS, MOST_TICKS + 1, 50])
def test_many_layers_are_a_heat_map(count, tmp_path):
    ax = plot.spectra({f"layers.{i}": [count - i, 0.5] if i else [count, 0.25, 0.0] for i in range(count)})
    assert len(ax.lines) == 0
    assert ax.get_legend() is None
    (image,) = ax.images
    grid = image.get_array().filled(np.nan)
    np.testing.assert_array_equal(grid[:, 0], range(count, 0, -1))
    np.testing.assert_array_equal(grid[:, 1], [0.25, *[0.5] * (count - 1)])
    assert np.isnan(grid[:, 2]).all()  # a zero, and components that are not there
    assert image.get_clim() == (0.25, count)
    assert tuple(image.get_extent()) == (0.5, 3.5, count, 0)  # the first layer at the top, components from 1
    named = min(count, MOST_TICKS)
    labels = ticks(ax.yaxis)
    assert len(labels) == named
    assert labels == [f"layers.{int(place)}" for place in ax.get_yticks()]
    assert [place % 1 for place in ax.get_yticks()] == [0.5] * named
    assert (labels[0], labels[-1]) == ("layers.0", f"layers.{count - 1}")
    assert ax.get_ylabel() == ("" if named == count else f"{named} of {count} layers named")
    assert ax.get_xlabel() == "component"
    _, bar = ax.figure.axes
    assert bar.get_ylabel() == QUANTITY
    assert bar.get_yscale() == "log"
    svg(ax, tmp_path / "x.svg")


def test_a_heat_map_of_new_layers_is_empty(tmp_path):
    ax = plot.spectra({str(i): LoRALayer(6, 5, 3, rng=0) for i in range(9)})
    assert ax.images[0].get_array().mask.all()
    svg(ax, tmp_path / "x.svg")


def test_names_that_matplotlib_would_interpret(tmp_path):
    names = ["_hidden", "$x^", "$a$", "", "x" * 40 + "…" + "y" * 40, "x" * 64]
    ax = plot.spectra({name: [1.0] for name in names})
    short = "x" * 32 + "…" + "y" * 32
    assert legend(ax) == [" _hidden", r"\$x^", r"\$a\$", "(the layer itself)", short, "x" * 64]
    svg(ax, tmp_path / "x.svg")


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({}, r"^layers must hold at least one LoRALayer, got none$"),
        (DenseLayer(3, 2, rng=0), r"^layers must hold at least one LoRALayer, got none$"),
        ({"a": dylora()}, r"^layers\['a'\] must be an array of real numbers"),
        ({"a": [[1.0]]}, r"^layers\['a'\] must be a LoRALayer or its singular values, shape \(k,\), got shape \(1, 1\)$"),
        ({"a": []}, r"^layers\['a'\] must be a LoRALayer or its singular values, shape \(k,\), got shape \(0,\)$"),
        (
            {"a": LoRALayer.from_factors(np.full((3, 1), np.inf), np.ones((1, 2)))},
            r"^layers\['a'\]: the factors must be finite",
        ),
    ],
)
def test_layers_without_a_spectrum_are_rejected(layers, message):
    with pytest.raises(ArgumentError, match=message):
        plot.spectra(layers)


# ---------------------------------------------------------------- slices of a rank


def slices(ax):
    """The colours of the strips of A and of B, in the order of the components."""
    colours = faces(ax, Rectangle)
    return [colour.upper() for colour in colours[::2]], [colour.upper() for colour in colours[1::2]]


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_the_slices_of_a_rank_are_coloured_by_block(rank):
    ax = plot.rank_slices(dylora(), rank=rank)
    first, second, third, _ = COLOURS[:4]
    expected = [*[first, second, third, third][:rank], *[IDLE.upper()] * (4 - rank)]
    assert slices(ax) == (expected, expected)
    assert ax.get_title() == f"rank {rank}:  ΔW = s A[:, :{rank}] B[:{rank}, :]"
    assert texts(ax) == ["A  (6, 4)", "B  (4, 5)", "active ranks: 1, 2, 4"]


def test_strips_have_equal_size_and_lie_side_by_side():
    ax = plot.rank_slices(dylora())
    boxes = [patch.get_bbox().bounds for patch in ax.patches]
    of_a, of_b = boxes[::2], boxes[1::2]
    assert [x for x, *_ in of_a] == pytest.approx([0, 1.25, 2.5, 3.75])
    assert [y for _, y, *_ in of_b] == pytest.approx([8.75, 7.5, 6.25, 5])
    assert {(w, h) for *_, w, h in of_a} == {(1.25, 10)}
    assert {(w, h) for *_, w, h in of_b} == {(10, 1.25)}


def test_the_rank_defaults_to_the_deployment_rank():
    adapter = dylora()
    adapter.set_deployment_rank(2)
    assert plot.rank_slices(adapter).get_title().startswith("rank 2:")


def test_components_beyond_the_largest_active_rank_are_idle():
    first, second = COLOURS[:2]
    assert slices(plot.rank_slices(dylora(active=(1, 2))))[0] == [first, second, *[IDLE.upper()] * 2]


def test_with_many_components_only_blocks_are_drawn():
    adapter = dylora(64, 64, max_rank=48, active=range(1, 41))
    ax = plot.rank_slices(adapter, rank=20)
    of_a, of_b = slices(ax)
    assert of_a == of_b
    assert of_a == [COLOURS[i % 7] for i in range(20)] + [IDLE.upper()] * 21
    widths = [patch.get_width() for patch in ax.patches][::2]
    assert sum(widths) == pytest.approx(5)
    assert widths[-1] == pytest.approx(8 * widths[0])
    assert texts(ax)[-1] == "active ranks: 1, 2, 3, …, 40"


@pytest.mark.parametrize(
    ("adapter", "rank", "message"),
    [
        (multilora(), None, r"^adapter must be a DyLoRAAdapter, got MultiLoRAAdapter"),
        (dylora(), 3, r"^rank must be one of the active ranks \(1, 2, 4\), got 3$"),
        (dylora(), 2.0, r"^rank must be an integer, got 2.0$"),
    ],
)
def test_invalid_slices_are_rejected(adapter, rank, message):
    with pytest.raises(ArgumentError, match=message):
        plot.rank_slices(adapter, rank=rank)


# ---------------------------------------------------------------- tasks


def test_the_matrix_holds_the_values_as_colours_and_numbers():
    values = np.array([[0.0, 0.25, 0.973], [1.0, 0.5, 0.499]])
    ax = plot.task_matrix(values, ["one", "two"], ["a", "$b", "c"], quality="share")
    image = ax.images[0]
    np.testing.assert_array_equal(image.get_array(), values)
    assert image.get_clim() == (0, 1)
    assert texts(ax) == ["0.0%", "25.0%", "97.3%", "100.0%", "50.0%", "49.9%"]
    assert [text.get_position() for text in ax.texts] == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]
    assert [text.get_color() for text in ax.texts] == ["white", "white", "black", "black", "black", "white"]
    assert ticks(ax.xaxis) == ["a", r"\$b", "c"]
    assert ticks(ax.yaxis) == ["one", "two"]
    assert ax.get_title() == "share"


@pytest.mark.parametrize(
    ("values", "rows", "message"),
    [
        ([[0.5, 0.5]], ["a"], r"^values must have shape \(1, 1\), got \(1, 2\)$"),
        ([[0.5], [1.5]], ["a", "b"], r"^values must lie between 0 and 1, got 0.5..1.5$"),
        ([[-0.5]], ["a"], r"^values must lie between 0 and 1, got -0.5..-0.5$"),
        ([[np.nan]], ["a"], r"^values must lie between 0 and 1, got nan..nan$"),
        (np.empty((0, 1)), [], r"^rows and columns must each hold at least one name, got \[\] and \['c'\]$"),
    ],
)
def test_values_that_are_not_fractions_are_rejected(values, rows, message):
    with pytest.raises(ArgumentError, match=message):
        plot.task_matrix(values, rows, ["c"])


# ---------------------------------------------------------------- the cost of a rank


def test_the_budget_agrees_with_the_counts_of_the_library():
    adapter = dylora(16, 12, max_rank=8, active=(1, 2, 8))
    base = adapter.base_layer
    ax = plot.budget(adapter)
    parameters, operations = ([bar.get_height() for bar in bars] for bars in ax.containers)
    counts = [StandardLoRAAdapter(base, rank, rng=0).parameter_count for rank in adapter.active_ranks]
    assert parameters == pytest.approx([100 * count / base.parameter_count for count in counts])
    added = []
    for rank in adapter.active_ranks:
        adapter.set_deployment_rank(rank)
        added.append(adapter.estimate_flops() - base.estimate_flops())
    assert operations == pytest.approx([100 * count / base.estimate_flops() for count in added])
    assert texts(ax) == [f"{value:.2g} %" for value in [*parameters, *operations]]
    assert legend(ax) == ["parameters", "operations"]
    assert ticks(ax.xaxis) == ["1", "2", "8"]
    assert ax.get_ylabel() == "percent of the base (204 parameters)"


@pytest.mark.parametrize(("count", "named"), [(12, 12), (20, 20), (21, 11), (50, 17)])
def test_bars_of_many_ranks_have_no_numbers(count, named):
    ax = plot.budget(dylora(64, 64, max_rank=count, active=range(1, count + 1)))
    assert [len(bars) for bars in ax.containers] == [count, count]
    assert texts(ax) == []
    assert len(texts(plot.budget(dylora(64, 64, max_rank=10, active=range(1, 11))))) == 20
    assert len(ax.get_xticks()) == named
    assert ticks(ax.xaxis) == [str(1 + int(place)) for place in ax.get_xticks()]


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (StandardLoRAAdapter(DenseLayer(3, 2, rng=0), 1), r"^adapter must be a DyLoRAAdapter, got StandardLoRAAdapter"),
        (DyLoRAAdapter(ActivationLayer(3, relu), 1, [1]), r"^adapter must have a base layer with parameters, got DyLoRA"),
    ],
)
def test_adapters_without_a_budget_are_rejected(adapter, message):
    with pytest.raises(ArgumentError, match=message):
        plot.budget(adapter)


# ---------------------------------------------------------------- data flow


def test_shapes_in_a_standard_adapter():
    ax = plot.data_flow(StandardLoRAAdapter(DenseLayer(6, 5, rng=0), 2, alpha=3, rng=0))
    assert texts(ax) == [
        "DenseLayer\n(6, 5), frozen",
        "A\n(6, 2)",
        "B\n(2, 5)",
        "h  (…, 2)\n× s = 1.5",
        "x\n(…, 6)",
        "+",
        "y\n(…, 5)",
    ]
    assert ax.get_title() == "StandardLoRAAdapter:  y = base(x) + s (x A) B"
    assert [face.upper() for face in faces(ax, FancyBboxPatch)] == [FROZEN.upper(), *[TRAINED] * 2]
    assert len(faces(ax, FancyArrowPatch)) == 6


def test_a_trained_base_is_coloured():
    ax = plot.data_flow(StandardLoRAAdapter(DenseLayer(6, 5, rng=0), 2, freeze_base_layer=False, rng=0))
    assert texts(ax)[0] == "DenseLayer\n(6, 5), trained"
    assert {face.upper() for face in faces(ax, FancyBboxPatch)} == {TRAINED}


def test_dylora_is_drawn_at_its_deployment_rank():
    adapter = dylora(alpha=8, scaling="paper")
    adapter.set_deployment_rank(2)
    ax = plot.data_flow(adapter)
    assert texts(ax)[1:4] == ["A[:, :2]\n(6, 2)", "B[:2, :]\n(2, 5)", "h  (…, 2)\n× s = 4"]
    assert ax.get_title() == "DyLoRAAdapter:  y = base(x) + s (x A[:, :2]) B[:2, :]"
    adapter.set_deployment_rank(4)
    assert texts(plot.data_flow(adapter))[1:3] == ["A\n(6, 4)", "B\n(4, 5)"]


@pytest.mark.parametrize(("count", "behind"), [(1, 0), (2, 1), (3, 2), (9, 2)])
def test_multilora_is_drawn_with_its_current_task_in_front(count, behind):
    adapter = multilora([f"task {i}" for i in range(count)])
    adapter.current_task = f"task {count - 1}"
    rank = 3 if count > 1 else 2
    ax = plot.data_flow(adapter)
    assert texts(ax)[1:3] == [f"A of\n'task {count - 1}'\n(6, {rank})", f"B of\n'task {count - 1}'\n({rank}, 5)"]
    assert faces(ax, FancyBboxPatch).count(IDLE) == 2 * behind


@pytest.mark.parametrize(
    "adapter",
    [
        DenseLayer(3, 2, rng=0),
        DoRAAdapter(DenseLayer(3, 2, rng=0), 1, rng=0),
        VeRAAdapter(DenseLayer(3, 2, rng=0), 1),
    ],
    ids=lambda adapter: type(adapter).__name__,
)
def test_other_layers_are_rejected(adapter):
    with pytest.raises(
        ArgumentError, match=rf"^adapter must add a LoRALayer to its base layer, got {type(adapter).__name__}"
    ):
        plot.data_flow(adapter)


@pytest.mark.parametrize("task", ["x", "customer-support", "customer-support-in-english", "W" * 100, "$ä_$"])
def test_names_of_tasks_stay_within_their_boxes(task):
    ax = plot.data_flow(multilora([task]))
    ax.figure.draw_without_rendering()
    boxes = [patch.get_window_extent() for patch in ax.patches if type(patch) is FancyBboxPatch]
    for box, text in zip(boxes, ax.texts, strict=False):
        inside = text.get_window_extent()
        assert box.x0 <= inside.x0 < inside.x1 <= box.x1, text.get_text()
        assert box.y0 <= inside.y0 < inside.y1 <= box.y1, text.get_text()


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("0123456789", "'0123456789'"),
        ("0123456789A", "'012345\n6789A'"),
        ("0123456789" * 2, "'0123456789\n0123456789'"),
        ("0123456789" * 2 + "A", "'0123456789…\n123456789A'"),
    ],
)
def test_long_names_of_tasks_take_two_lines(task, name):
    assert texts(plot.data_flow(multilora([task])))[1] == f"A of\n{name}\n(6, 2)"


# ---------------------------------------------------------------- the history of a training


def recorded(steps, epochs=0, validation=()):
    means = [float(np.mean(part)) for part in np.array_split(steps, epochs)] if epochs else []
    return History(list(steps), means, [()] * len(steps), list(validation))


def lines_of(ax):
    return {line.get_label(): line.get_xydata() for line in ax.lines}


def test_each_loss_is_drawn_where_it_was_measured():
    history = recorded([8.0, 6.0, 5.0, 4.0, 3.0, 2.0], epochs=2, validation=[3.0, 2.5])
    lines = lines_of(plot.history(history))
    assert list(lines) == ["each step", "mean of each epoch", "validation", "best: epoch 2, 2.5"]
    np.testing.assert_array_equal(lines["each step"], np.transpose([range(1, 7), history.step_losses]))
    np.testing.assert_allclose(lines["mean of each epoch"], [[2, 19 / 3], [5, 3]])
    np.testing.assert_array_equal(lines["validation"], [[3, 3.0], [6, 2.5]])
    np.testing.assert_array_equal(lines["best: epoch 2, 2.5"], [[6, 2.5]])


def test_the_best_epoch_need_not_be_the_last_one():
    history = recorded([1.0] * 6, epochs=3, validation=[np.nan, 0.5, 0.75])
    np.testing.assert_array_equal(lines_of(plot.history(history))["best: epoch 2, 0.5"], [[4, 0.5]])


def test_parts_without_numbers_are_omitted():
    assert list(lines_of(plot.history(recorded([1.0, 2.0])))) == ["each step"]
    assert list(lines_of(plot.history(recorded([1.0], epochs=1, validation=[np.nan])))) == [
        "each step",
        "mean of each epoch",
        "validation",
    ]


@pytest.mark.parametrize(("steps", "window"), [(50, None), (99, None), (100, 2), (1000, 20)])
def test_many_steps_get_a_running_mean(steps, window):
    losses = np.random.default_rng(0).random(steps) + 1
    means = [points for label, points in lines_of(plot.history(recorded(losses))).items() if label.startswith("running")]
    assert len(means) == (window is not None)
    if window:
        np.testing.assert_allclose(means[0][:, 1], running_mean(losses, window))


def test_running_means_of_finite_values():
    np.testing.assert_allclose(running_mean(np.array([1.0, 2, 6, 7]), 3), [1.5, 3, 5, 6.5])
    np.testing.assert_allclose(running_mean(np.array([1.0, np.nan, 6, np.inf]), 3), [1, 3.5, 6, 6])
    np.testing.assert_allclose(running_mean(np.array([np.nan, np.nan, np.nan, 6]), 3), [np.nan, np.nan, 6, 6])


@pytest.mark.parametrize(
    ("losses", "scale"),
    [([3.0, 0.1], "linear"), ([3.1, 0.1], "log"), ([3.0, 0.0], "linear"), ([100.0, -1.0], "linear"), ([np.nan], "linear")],
)
def test_a_wide_range_of_losses_gets_a_logarithmic_axis(losses, scale, tmp_path):
    ax = plot.history(recorded(losses))
    assert ax.get_yscale() == scale
    svg(ax, tmp_path / "x.svg")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0], r"^history must be a History, got \[1.0\]$"),
        (History(), r"^history must hold at least one step, got History\(epochs=0, steps=0\)$"),
    ],
)
def test_what_is_not_a_training_is_rejected(value, message):
    with pytest.raises(ArgumentError, match=message):
        plot.history(value)
