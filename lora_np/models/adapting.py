"""Adding adapters to a whole model, removing and merging them. A model is any layer: a Sequential, or a single adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias, TypeVar, overload

import numpy as np

from .._typing import RNG
from .._validation import generator, instance, sequence
from ..adapters.base import LoRAAdapterBase
from ..base import Layer, become
from ..errors import ArgumentError, InvalidOperationError
from ..functions.activations import identity
from ..layers.dense import AffineLayer
from ..layers.sequential import Sequential
from .finding import has_adapters
from .names import Names, dense_paths, is_inside, join, matching

Factory: TypeAlias = Callable[[AffineLayer], LoRAAdapterBase]
Model = TypeVar("Model", bound=Layer)


@overload
def apply_lora(  # a single dense layer becomes its adapter
    model: AffineLayer,
    adapter: type[LoRAAdapterBase] | Factory,
    targets: Names = None,
    exclude: Names = None,
    *,
    train: Iterable[str] = (),
    rng: RNG = None,
    **choices: Any,
) -> Layer: ...
@overload
def apply_lora(
    model: Model,
    adapter: type[LoRAAdapterBase] | Factory,
    targets: Names = None,
    exclude: Names = None,
    *,
    train: Iterable[str] = (),
    rng: RNG = None,
    **choices: Any,
) -> Model: ...
def apply_lora(
    model: Layer,
    adapter: type[LoRAAdapterBase] | Factory,
    targets: Names = None,
    exclude: Names = None,
    *,
    train: Iterable[str] = (),
    rng: RNG = None,
    **choices: Any,
) -> Layer:
    """A model in which selected dense layers are adapted, and only the adapters train.

    The given model is not changed; the new one shares its arrays. A dense layer with an activation is split, so that the
    adapter can be merged later: the adapter of the linear part takes the layer's name, and the activation follows it as
    ``<name>_activation``.

    Parameters
    ----------
    model : Layer
        Any layer; the layers inside it are searched too, but not those inside existing adapters.
    adapter : class of adapter, or callable
        A class such as `DyLoRAAdapter`, whose other arguments follow as keywords, or a function that maps a linear
        DenseLayer or FullyConnectedLayer to an adapter of it.
    targets : names, optional
        Which layers to adapt, by dotted path such as ``"0"`` or ``"encoder.1"``; by default, all dense layers that are not
        in `train`. In a sequence, each name matches the paths that are equal to it or end in ``.name``; a string or a
        compiled pattern is a regular expression that must match the whole path.
    exclude : names, optional
        Which of them to skip, in the same forms.
    train : sequence of str, optional
        Paths of other layers that stay trainable, such as a new head; all other layers are frozen.
    rng : seed or numpy.random.Generator, optional
        For a class of adapter; each layer gets a separate generator.
    **choices
        The arguments of the class other than the base layer.

    Returns
    -------
    Layer
        A model of the same type; for a single dense layer, its adapter.

    Raises
    ------
    ArgumentError
        If a name matches no layer, if no layer is left to adapt, or if the class rejects an argument.

    Examples
    --------
    >>> from lora_np import DenseLayer, DyLoRAAdapter, Sequential, apply_lora, relu
    >>> model = Sequential([DenseLayer(8, 16, relu, rng=0), DenseLayer(16, 3, rng=1)])
    >>> adapted = apply_lora(model, DyLoRAAdapter, max_rank=4, active_ranks=[1, 2, 4], targets=["0"], train=["1"], rng=0)
    >>> list(adapted.named_parameters())
    ['0.lora.matrix_a', '0.lora.matrix_b', '1.weight', '1.bias']
    """
    instance("model", model, Layer, "a layer")
    kept = _kept(model, train)
    dense = [path for path in dense_paths(model) if targets is not None or not is_inside(path, kept)]
    chosen = set(dense) if targets is None else matching("targets", targets, dense)
    chosen -= set() if exclude is None else matching("exclude", exclude, dense)
    if not chosen:
        raise ArgumentError(f"targets must leave at least one of the dense layers {dense} to adapt, got {targets!r}")
    if both := [path for path in chosen if is_inside(path, kept)]:
        raise ArgumentError(f"train must not name layers to adapt, got {both[0]!r}")
    if isinstance(adapter, type):
        random = generator(rng)
        factories = {path: _factory(adapter, path, random, choices) for path in dense if path in chosen}
    else:
        if choices or rng is not None:
            raise ArgumentError(f"adapter must be a class if rng or other arguments are given, got {adapter!r}")
        factories = dict.fromkeys(chosen, adapter)
    return apply_adapters(model, factories, train=kept)


def apply_adapters(
    model: Layer,
    factories: Mapping[str, Factory],
    *,
    train: Iterable[str] = (),
    replace: Mapping[str, Layer] = MappingProxyType({}),
) -> Layer:
    """As `apply_lora`, with a separate factory for each layer.

    Parameters
    ----------
    model : Layer
    factories : mapping of callables by dotted path
        The path of a single dense layer is ``""``.
    train : sequence of str, optional
        Paths of other layers that stay trainable.
    replace : mapping of layers by dotted path, optional
        Layers that replace others of the model, and stay trainable.

    Returns
    -------
    Layer
        As from `apply_lora`.

    Raises
    ------
    ArgumentError
        If there is no dense layer at a path, or if a factory does not return an adapter.
    """
    dense = list(dense_paths(model))
    unknown = [path for path in factories if path not in dense]
    if unknown or not (factories or replace):
        raise ArgumentError(f"factories must be for dense layers of the model, which are {dense}; got {list(factories)}")
    layers = model.walk()  # the factories are called in this order, because they may share a generator
    adapted = {path: _adapted(path, layer, factories[path]) for path, layer in layers.items() if path in factories}
    changed = adapted | dict(replace)
    new = rebuilt(model, lambda path, layer: changed.get(path, layer), train=(*_kept(model, train), *replace))
    return new.as_one() if isinstance(new, _Split) else new


def without_adapters(model: Layer) -> Layer:
    """The model with each adapter replaced by its base layer; the arrays are shared, and none is frozen."""
    instance("model", model, Layer, "a layer")
    bare: Layer = rebuilt(
        model,
        lambda _, layer: layer.base_layer if isinstance(layer, LoRAAdapterBase) else layer,
        train=("",),
    )
    return bare


def merge_in_place(model: Layer) -> int:
    """Replace every adapter in the model by the merged layer.

    Returns
    -------
    int
        The number of merged adapters.

    Raises
    ------
    InvalidOperationError, NotSupportedError
        If an adapter cannot be merged, or if the model is itself an adapter, which cannot be replaced in place; nothing is
        changed.
    """
    instance("model", model, Layer, "a layer")
    if isinstance(model, LoRAAdapterBase):
        raise InvalidOperationError(f"{model.layer_name} cannot replace itself; use its merge_to_original_layer()")
    swaps, count = [], 0
    for layer in model.walk().values():
        adapters = {name: child for name, child in layer.children().items() if isinstance(child, LoRAAdapterBase)}
        if adapters and not isinstance(layer, LoRAAdapterBase):
            merged = {name: adapter.merge_to_original_layer() for name, adapter in adapters.items()}
            swaps.append((layer, layer.with_children(merged)))
            count += len(merged)
    for container, twin in swaps:
        become(container, twin)
    return count


class _Split(NamedTuple):
    """Two layers that replace one."""

    adapter: Layer
    activation: Layer

    def as_one(self) -> Layer:
        return Sequential({"linear": self.adapter, "linear_activation": self.activation})


def rebuilt(model: Layer, change: Callable[[str, Layer], Any], path: str = "", *, train: Iterable[str] = ()) -> Any:
    """The model with each layer replaced by the result of `change(path, layer)`; layers that stay are searched in turn.

    In rebuilt containers, only adapters and the layers in `train` are trainable. Unchanged layers are shared.
    """
    new = change(path, model)
    if new is not model or isinstance(model, LoRAAdapterBase):
        return new
    children = model.children()
    inside = {name: rebuilt(child, change, join(path, name), train=train) for name, child in children.items()}
    changed = {name: layer for name, layer in inside.items() if layer is not children[name]}
    if not changed and (is_inside(path, train) or not any(is_inside(kept, [path]) for kept in train)):
        return model
    twin = _with_children(model, changed)
    if not is_inside(path, train):
        at_rest = {name for name, layer in twin.children().items() if not _trains(join(path, name), layer, train)}
        twin.frozen = frozenset(at_rest.union(twin.parameter_names))
    return twin


def _trains(path: str, layer: Layer, train: Iterable[str]) -> bool:
    return has_adapters(layer) or is_inside(path, train) or any(is_inside(kept, [path]) for kept in train)


def _with_children(model: Layer, changed: Mapping[str, Any]) -> Layer:
    """As `Layer.with_children`, but a Sequential takes the two layers of a `_Split` under separate names."""
    if not isinstance(model, Sequential):
        ones = {name: layer.as_one() if isinstance(layer, _Split) else layer for name, layer in changed.items()}
        return model.with_children(ones)
    layers: dict[str, Layer] = {}
    for name, layer in (dict(model.children()) | dict(changed)).items():
        if isinstance(layer, _Split):
            activation = f"{name}_activation"
            if activation in model.children():
                raise ArgumentError(f"model must not have a layer {activation!r}, the name for the activation of {name!r}")
            layers |= {name: layer.adapter, activation: layer.activation}
        else:
            layers[name] = layer
    return Sequential(layers)


def _kept(model: Layer, train: Iterable[str]) -> tuple[str, ...]:
    """The paths of the layers that stay trainable, each of which must exist."""
    kept, layers = sequence("train", train, "layer names"), model.walk()
    for path in kept:
        if not isinstance(path, str) or path not in layers:
            raise ArgumentError(f"train must name layers of the model, which are {list(layers)[1:]}; got {path!r}")
    return kept


def _factory(make: Callable[..., Any], path: str, random: np.random.Generator, choices: Mapping[str, Any]) -> Factory:
    seed = int(random.integers(2**63))

    def build(linear: AffineLayer) -> LoRAAdapterBase:
        try:
            adapter: LoRAAdapterBase = make(linear, **choices, rng=np.random.default_rng(seed))
            return adapter
        except (ArgumentError, TypeError) as error:
            raise ArgumentError(f"{path or 'model'}: {error}") from error

    return build


def _adapted(path: str, layer: Layer, factory: Factory) -> Layer | _Split:
    """The adapter of a dense layer, and its activation if it has one."""
    assert isinstance(layer, AffineLayer)
    linear, activation = layer.split_activation()
    plain = activation.activation == identity
    adapter = factory(layer if plain else linear)
    if not isinstance(adapter, LoRAAdapterBase):
        raise ArgumentError(f"adapter must return an adapter, got {adapter!r} for {path!r}")
    return adapter if plain else _Split(adapter, activation)
