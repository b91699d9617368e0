"""What acts on a whole model, which is any layer: a Sequential, or one adapter."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from .._validation import not_none
from ..adapters.base import LoRAAdapterBase
from ..adapters.multilora import MultiLoRAAdapter
from ..base import Layer
from ..errors import ArgumentError, InvalidOperationError
from ..functions.activations import identity
from ..layers.dense import AffineLayer
from ..layers.sequential import Sequential

Names: TypeAlias = str | re.Pattern[str] | Iterable[str] | None


def apply_lora(
    model: Layer,
    factory: Callable[[AffineLayer], LoRAAdapterBase],
    targets: Names = None,
    exclude: Names = None,
) -> Layer:
    """A model in which chosen dense layers are adapted, and nothing but the adapters trains.

    The given model is left as it is; the new one shares its arrays. A dense layer with an activation is split, so that the
    adapter can be merged later: the adapter of the linear part takes the layer's name, and the activation follows it as
    ``<name>_activation``.

    Parameters
    ----------
    model : Layer
        Any layer; those inside it are searched too. Layers inside an adapter that is there already are left alone.
    factory : callable
        Takes a linear DenseLayer or FullyConnectedLayer and returns an adapter around it.
    targets : names, optional
        Which layers to adapt, by dotted path such as ``"0"`` or ``"encoder.1"``; all dense layers if left out. Of a
        sequence, each name matches a path that is equal or ends in ``.name``; a string or a compiled pattern is a regular
        expression that must match the whole path.
    exclude : names, optional
        Which of them to leave out, in the same forms.

    Returns
    -------
    Layer
        A new container of the same kind; for a single layer without an activation, the adapter itself.

    Raises
    ------
    ArgumentError
        A target or an exclusion matches no dense layer, or nothing is left to adapt; or `factory` returned no adapter.

    Examples
    --------
    >>> from lora_np import DenseLayer, Sequential, StandardLoRAAdapter, apply_lora, relu
    >>> model = Sequential([DenseLayer(8, 16, relu, rng=0), DenseLayer(16, 3, rng=1)])
    >>> apply_lora(model, lambda layer: StandardLoRAAdapter(layer, rank=2, rng=0), targets=["1"])
    Sequential(8 -> 3, 38 of 233 parameters train)
      0: DenseLayer(8 -> 16, activation=relu, 144 parameters)
      1: StandardLoRAAdapter(16 -> 3, rank=2, alpha=2, scaling=1, base_frozen=True, 38 of 89 parameters train)
    """
    not_none("model", model)
    dense = list(_dense_paths(model))
    chosen = set(dense) if targets is None else _matching("targets", targets, dense)
    chosen -= set() if exclude is None else _matching("exclude", exclude, dense)
    if not chosen:
        raise ArgumentError(f"targets must leave something to adapt among the dense layers {dense}, got {targets!r}")
    return apply_adapters(model, dict.fromkeys(chosen, factory))


def apply_adapters(model: Layer, factories: Mapping[str, Callable[[AffineLayer], LoRAAdapterBase]]) -> Layer:
    """As `apply_lora`, with a factory of its own for each layer.

    Parameters
    ----------
    model : Layer
        As in `apply_lora`.
    factories : mapping of callables by dotted path
        The path of a single dense layer is ``""``.

    Returns
    -------
    Layer
        As from `apply_lora`.

    Raises
    ------
    ArgumentError
        There is no dense layer of this path; or a factory returned no adapter.
    """
    dense = list(_dense_paths(model))
    unknown = [path for path in factories if path not in dense]
    if unknown or not factories:
        raise ArgumentError(f"factories must be for dense layers of the model, which are {dense}; got {list(factories)}")
    adapted = {path: _adapted(path, layer, factories[path]) for path, layer in model.walk().items() if path in factories}
    new = rebuilt(model, lambda path, layer: adapted.get(path, layer), frozen=lambda layer: not has_adapters(layer))
    return new.as_one() if isinstance(new, _Split) else new


class _Split(NamedTuple):
    """Two layers in the place of one."""

    adapter: Layer
    activation: Layer

    def as_one(self) -> Layer:
        return Sequential({"linear": self.adapter, "linear_activation": self.activation})


def rebuilt(model: Layer, change: Callable[[str, Layer], Any], path: str = "", *, frozen: Callable[[Layer], bool]) -> Any:
    """The model with other layers inside: each is what `change` makes of it, by its path; one that stays is searched.

    Layers in which nothing changes are shared. Those of which `frozen` is true do not train.
    """
    new = change(path, model)
    if new is not model or isinstance(model, LoRAAdapterBase):
        return new
    children = model.children()
    inside = {name: rebuilt(child, change, join(path, name), frozen=frozen) for name, child in children.items()}
    changed = {name: layer for name, layer in inside.items() if layer is not children[name]}
    if not changed:
        return model
    twin = _with_children(model, changed)
    twin.frozen_children = frozenset(name for name, layer in twin.children().items() if frozen(layer))
    return twin


def _with_children(model: Layer, changed: Mapping[str, Any]) -> Layer:
    """`Layer.with_children`; a Sequential has room for both layers of a `_Split`, each under its own name."""
    if not isinstance(model, Sequential):
        ones = {name: layer.as_one() if isinstance(layer, _Split) else layer for name, layer in changed.items()}
        return model.with_children(ones)
    layers: dict[str, Layer] = {}
    for name, layer in (dict(model.children()) | dict(changed)).items():
        if isinstance(layer, _Split):
            activation = f"{name}_activation"
            if activation in model.children():
                raise ArgumentError(f"model must have no layer {activation!r}: that name is for the activation of {name!r}")
            layers |= {name: layer.adapter, activation: layer.activation}
        else:
            layers[name] = layer
    return Sequential(layers)


def join(path: str, name: str) -> str:
    """The dotted path of a child."""
    return f"{path}.{name}" if path else name


def _dense_paths(model: Layer, path: str = "") -> Iterator[str]:
    if isinstance(model, AffineLayer):
        yield path
    elif not isinstance(model, LoRAAdapterBase):
        for name, layer in model.children().items():
            yield from _dense_paths(layer, join(path, name))


def _matching(argument: str, names: Names, paths: list[str]) -> set[str]:
    found: set[str] = set()
    patterns: list[str | re.Pattern[str]]
    if isinstance(names, str | re.Pattern):
        patterns = [names]
    else:
        listed = list(names) if isinstance(names, Iterable) else [names]
        if not all(isinstance(name, str) for name in listed):
            raise ArgumentError(f"{argument} must be names, or a regular expression, got {names!r}")
        patterns = [rf"(.*\.)?{re.escape(str(name))}" for name in listed]
    for pattern in patterns:
        try:
            matched = {path for path in paths if re.fullmatch(pattern, path)}
        except re.error as error:
            raise ArgumentError(f"{argument} must be a regular expression or a sequence of names: {error}") from error
        if not matched:
            raise ArgumentError(f"{argument} must match dense layers of the model, which are {paths}; got {names!r}")
        found |= matched
    return found


def _adapted(path: str, layer: Layer, factory: Callable[[AffineLayer], LoRAAdapterBase]) -> Layer | _Split:
    """The adapter of a dense layer, and its activation if it has one."""
    assert isinstance(layer, AffineLayer)
    linear, activation = layer.split_activation()
    plain = activation.activation == identity
    adapter = factory(layer if plain else linear)
    if not isinstance(adapter, LoRAAdapterBase):
        raise ArgumentError(f"factory must return an adapter, got {adapter!r} for {path!r}")
    return adapter if plain else _Split(adapter, activation)


def has_adapters(model: Layer) -> bool:
    """Whether there is an adapter in the model."""
    return any(isinstance(layer, LoRAAdapterBase) for layer in model.walk().values())


def has_multi_lora_adapters(model: Layer) -> bool:
    """Whether there is a MultiLoRAAdapter in the model."""
    return any(isinstance(layer, MultiLoRAAdapter) for layer in model.walk().values())


def select_task(model: Layer, task: str) -> int:
    """Make a task the current one of every MultiLoRAAdapter in the model.

    Returns
    -------
    int
        How many there are.

    Raises
    ------
    ArgumentError
        One of them does not have the task; none is switched.
    InvalidOperationError
        The model has none.
    """
    adapters = {path: layer for path, layer in model.walk().items() if isinstance(layer, MultiLoRAAdapter)}
    if not adapters:
        raise InvalidOperationError(f"{model.layer_name} has no MultiLoRAAdapter whose task could be selected")
    for path, adapter in adapters.items():
        try:
            adapter.get_task_adapter(task)
        except ArgumentError as error:
            raise ArgumentError(f"{path or adapter.layer_name}: {error}") from error
    for adapter in adapters.values():
        adapter.current_task = task
    return len(adapters)


def merge_in_place(model: Layer) -> int:
    """Put the merged layer in the place of every adapter in the model.

    Returns
    -------
    int
        How many adapters were merged.

    Raises
    ------
    InvalidOperationError, NotSupportedError
        An adapter cannot be merged, or the model is itself an adapter, which has no place to put the merged layer in; the
        model is left as it is.
    """
    if isinstance(model, LoRAAdapterBase):
        raise InvalidOperationError(f"{model.layer_name} cannot replace itself; use its merge_to_original_layer()")
    swaps = []
    for layer in model.walk().values():
        adapters = {name: child for name, child in layer.children().items() if isinstance(child, LoRAAdapterBase)}
        if adapters and not isinstance(layer, LoRAAdapterBase):
            swaps.append((layer, {name: adapter.merge_to_original_layer() for name, adapter in adapters.items()}))
    for container, merged in swaps:
        container.with_children(merged)  # where it cannot, nothing has changed yet
    for container, merged in swaps:
        container.replace(merged)
    return sum(len(merged) for _, merged in swaps)


@dataclass(frozen=True)
class ParameterRow:
    """One array of a model."""

    name: str
    shape: tuple[int, ...]
    size: int
    trains: bool


@dataclass(frozen=True)
class ParameterTable:
    """The arrays of a model; `str` shows them as a table."""

    rows: tuple[ParameterRow, ...]

    @property
    def trainable(self) -> int:
        """The number of parameters that train."""
        return sum(row.size for row in self.rows if row.trains)

    @property
    def total(self) -> int:
        """The number of all parameters."""
        return sum(row.size for row in self.rows)

    def __str__(self) -> str:
        width = max([len("array"), *(len(row.name) for row in self.rows)])
        lines = [f"{'array':{width}}  {'shape':>12}  {'size':>10}  trains"]
        for row in self.rows:
            shape = " x ".join(map(str, row.shape))
            lines.append(f"{row.name:{width}}  {shape:>12}  {row.size:>10,}  {'yes' if row.trains else 'no'}")
        share = self.trainable / self.total if self.total else 0.0
        lines.append(f"{self.trainable:,} of {self.total:,} parameters train ({share:.2%})")
        return "\n".join(lines)


def trainable_parameters(model: Layer) -> ParameterTable:
    """A table of a model's arrays: name, shape, size, and whether it trains.

    Examples
    --------
    >>> from lora_np import DenseLayer, StandardLoRAAdapter, trainable_parameters
    >>> print(trainable_parameters(StandardLoRAAdapter(DenseLayer(64, 10, rng=0), rank=2, rng=1)))
    array                 shape        size  trains
    base.weight         64 x 10         640  no
    base.bias                10          10  no
    lora.matrix_a        64 x 2         128  yes
    lora.matrix_b        2 x 10          20  yes
    148 of 798 parameters train (18.55%)
    """
    trains = model.named_parameters()
    rows = [
        ParameterRow(name, array.shape, array.size, name in trains)
        for name, array in model.named_parameters(frozen=True).items()
    ]
    return ParameterTable(tuple(rows))
