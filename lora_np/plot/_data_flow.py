"""The path of the data through an adapter."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from ..adapters import AdditiveAdapter, MultiLoRAAdapter
from ..adapters.rank_choice import rank_choices
from ..errors import ArgumentError
from ..layers.lora import LoRALayer
from ._style import FROZEN, IDLE, INK, TRAINED, as_text, axes_or_new

LETTERS_IN_A_LINE = 12
"""Longer names of tasks take two lines; still longer ones are shortened in the middle."""


def data_flow(adapter: AdditiveAdapter, *, ax: Axes | None = None) -> Axes:
    """Draw the data flow through an adapter, with the shape of every array; trained parts are coloured.

    Parameters
    ----------
    adapter : StandardLoRAAdapter, DyLoRAAdapter or MultiLoRAAdapter
        At the deployment rank; MultiLoRA with its current task.
    ax : matplotlib axes, optional

    Returns
    -------
    matplotlib axes

    Raises
    ------
    ArgumentError
        If `adapter` does not add a LoRALayer to its base layer.
    """
    if not isinstance(adapter, AdditiveAdapter) or not isinstance(adapter.lora_layer, LoRALayer):
        raise ArgumentError(f"adapter must add a LoRALayer to its base layer, got {adapter!r}")
    branch = adapter.lora_layer
    choice = rank_choices(adapter).get(f"tasks.{adapter.current_task}" if isinstance(adapter, MultiLoRAAdapter) else "")
    rank = branch.rank if choice is None else choice.current_deployment_rank
    a, b = ("A", "B") if rank == branch.rank else (f"A[:, :{rank}]", f"B[:{rank}, :]")
    tasks = list(adapter.task_adapters) if isinstance(adapter, MultiLoRAAdapter) else []
    task = f" of\n{_name(adapter.current_task)}" if isinstance(adapter, MultiLoRAAdapter) else ""
    n, m = adapter.input_size, adapter.output_size
    base, colour = ("frozen", FROZEN) if adapter.is_base_layer_frozen else ("trained", TRAINED)
    ax = axes_or_new(ax)
    ax.set_axis_off()
    _box(ax, (3.9, 3.2), 5.4, f"{type(adapter.base_layer).__name__}\n({n}, {m}), {base}", colour)
    _box(ax, (2.2, 0.5), 3.4, f"{a}{task}\n({n}, {rank})", TRAINED, behind=len(tasks) - 1)
    _box(ax, (7.6, 0.5), 3.4, f"{b}{task}\n({rank}, {m})", TRAINED, behind=len(tasks) - 1)
    for start, end in [
        ((0.6, 2.3), (3.9, 3.8)),
        ((0.6, 2.3), (2.2, 1.3)),
        ((5.6, 1.1), (7.6, 1.1)),
        ((9.3, 3.8), (12.1, 2.6)),
        ((11.0, 1.1), (12.1, 2.0)),
        ((12.7, 2.3), (13.7, 2.3)),
    ]:
        ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=14, color=INK, shrinkA=2, shrinkB=2))
    ax.text(6.6, 1.35, f"h  (…, {rank})\n× s = {branch.scaling_at(rank):g}", ha="center", va="bottom", fontsize="small")
    ax.text(0.4, 2.3, f"x\n(…, {n})", ha="right", va="center")
    ax.text(12.4, 2.3, "+", ha="center", va="center", fontsize="xx-large", weight="bold")
    ax.text(13.8, 2.3, f"y\n(…, {m})", ha="left", va="center")
    ax.set_title(f"{type(adapter).__name__}:  y = base(x) + s (x {a}) {b}")
    ax.set(xlim=(-1.0, 15.2), ylim=(0.0, 4.8))
    return ax


def _name(task: str) -> str:
    """The task in quotes, on at most two lines."""
    name, half = repr(task), LETTERS_IN_A_LINE - 1
    if len(name) <= LETTERS_IN_A_LINE:
        return as_text(name)
    middle = (len(name) + 1) // 2
    lines = (name[:middle], name[middle:]) if middle <= half else (f"{name[:half]}…", name[-half:])
    return "\n".join(map(as_text, lines))


def _box(ax: Axes, corner: tuple[float, float], width: float, text: str, colour: str, *, behind: int = 0) -> None:
    """A box with text, and up to two idle ones behind it."""
    x, y = corner
    height = 1.3
    for shift in [*(0.14 * i for i in range(min(behind, 2), 0, -1)), 0.0]:
        face = IDLE if shift else colour
        place = (x + shift, y - shift)
        ax.add_patch(FancyBboxPatch(place, width, height, boxstyle="round,pad=0.05", facecolor=face, edgecolor="white"))
    size = "small" if text.count("\n") > 1 else "medium"
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", color="white", fontsize=size)
