"""`ParameterTree`: the arrays of a layer and the layers inside it, by name and as one vector.

All writes to the arrays of a layer go through this module.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from .. import kernels
from .._typing import Array
from .._validation import real_array, same_shape
from ..errors import ArgumentError, InvalidOperationError, NotSupportedError

_numbers = itertools.count(1)


class ParameterTree:
    """Named arrays, and child layers, whose arrays have dotted names.

    The named arrays are the single source of truth: the flat vector, files and optimizers derive from them on every call.
    """

    parameter_names: tuple[str, ...] = ()
    """The attributes that hold this layer's arrays, in the order of the flat vector."""

    frozen: frozenset[str] = frozenset()
    """The names of the arrays and children that do not train; input gradients still flow through them."""

    input_size: int
    output_size: int
    dtype: np.dtype[Any]
    layer_name: str
    if TYPE_CHECKING:  # provided by `Layer`
        gradients: Any

    # ---------------------------------------------------------------- layers

    def children(self) -> Mapping[str, Any]:
        """The layers directly inside this one, by name."""
        return {}

    def with_children(self, changed: Mapping[str, Any]) -> Self:
        """A copy in which the named children are replaced; everything else is shared. Containers implement it."""
        raise NotSupportedError(f"{self.layer_name}: {type(self).__name__} does not implement with_children")

    def walk(self, prefix: str = "") -> dict[str, Any]:
        """The layer and all layers inside it, by dotted path; its own path is the empty string."""
        layers: dict[str, Any] = {prefix: self}
        for name, child in self.children().items():
            layers |= child.walk(f"{prefix}.{name}" if prefix else name)
        return layers

    def _trained_children(self) -> list[Any]:
        return [child for name, child in self.children().items() if name not in self.frozen]

    def compute_auxiliary_loss(self) -> Any:
        """The penalties of the trainable weights, to be added to the loss; `vjp` already includes their gradients."""
        return sum(child.compute_auxiliary_loss() for child in self._trained_children())

    # ---------------------------------------------------------------- by name

    def named_parameters(self, *, frozen: bool = False) -> dict[str, Array]:
        """The live arrays by dotted name, in the order of the flat vector.

        Parameters
        ----------
        frozen : bool, default False
            Whether to include the arrays that do not train.
        """
        arrays: dict[str, Array] = {
            name: getattr(self, name) for name in self.parameter_names if frozen or name not in self.frozen
        }
        for child_name, child in self.children().items():
            if frozen or child_name not in self.frozen:
                arrays |= prefixed(child_name, child.named_parameters(frozen=frozen))
        return arrays

    def _owner(self, name: str, frozen: bool) -> tuple[ParameterTree, str] | None:
        """The layer that holds a parameter, and the attribute's name; found without listing all parameters."""
        if name in self.parameter_names:
            return (self, name) if frozen or name not in self.frozen else None
        children = self.children()
        child_name = name
        while child_name := child_name.rpartition(".")[0]:  # a child's name may contain dots: the longest match wins
            child = children.get(child_name)
            if child is not None and (frozen or child_name not in self.frozen):
                owner: tuple[ParameterTree, str] | None = child._owner(name[len(child_name) + 1 :], frozen)
                if owner is not None:
                    return owner
        return None

    # ---------------------------------------------------------------- as one vector

    @property
    def parameter_count(self) -> int:
        """The number of trainable parameters: the length of the flat vector."""
        return self._count()

    def _count(self, *, frozen: bool = False) -> int:
        """The number of elements of all arrays that `named_parameters` returns."""
        return sum(array.size for array in self.named_parameters(frozen=frozen).values())

    def get_parameters(self) -> Array:
        """A copy of all trainable parameters as one vector, row-major, in the order of `named_parameters`."""
        return self._flat(self.named_parameters().values())

    def get_parameter_gradients(self) -> Array:
        """The pending gradients as one vector; exactly zero for parameters without one."""
        arrays = self.named_parameters()
        return self._flat(self.gradients.get(name, np.zeros_like(array)) for name, array in arrays.items())

    def set_parameters(self, parameters: Any) -> None:
        """Set all trainable parameters in place from a vector in the order of `get_parameters`.

        Raises
        ------
        ArgumentError
            If the length is wrong, or if the elements are not real numbers; nothing is changed.
        """
        vector = real_array("parameters", parameters, self.dtype, copy=True)
        arrays = self.named_parameters()
        same_shape("parameters", vector, (sum(array.size for array in arrays.values()),))
        start, values = 0, {}
        for name, array in arrays.items():
            values[name] = vector[start : start + array.size].reshape(array.shape)
            start += array.size
        self._assign(values)

    def _flat(self, arrays: Iterable[Array]) -> Array:
        return np.concatenate([np.empty(0, self.dtype), *(array.ravel() for array in arrays)])

    # ---------------------------------------------------------------- writing

    def _trained(self, values: Mapping[str, Array], *, skip_frozen: bool = False) -> dict[str, Array]:
        """The trainable parameter of each value, by name: of the same shape, and writeable."""
        parameters = {}
        for name, value in values.items():
            owner = self._owner(name, False)
            if owner is None and skip_frozen:
                continue  # the vjp of a container may return gradients of frozen arrays too
            parameter = self._live(name, value, owner)
            if not parameter.flags.writeable:
                layer, attribute = owner  # type: ignore[misc]  # `_live` found it
                raise InvalidOperationError(
                    f"{self.layer_name}: {attribute} of {layer.layer_name} is packed or memory-mapped and cannot train; "
                    "call unpack() first"
                )
            parameters[name] = parameter
        return parameters

    def _assign(self, values: Mapping[str, Array]) -> None:
        """Set arrays, frozen or not, in place, either all or none."""
        owners = {name: self._owner(name, True) for name in values}
        arrays = [self._live(name, value, owners[name]) for name, value in values.items()]
        for owner, array, value in zip(owners.values(), arrays, values.values(), strict=True):
            if owner is not None and not (array.flags.writeable or kernels.unpack(array)):  # memory-mapped
                array = np.empty_like(array)
                setattr(*owner, array)
            array[...] = value

    def _live(self, name: str, value: Array, owner: tuple[ParameterTree, str] | None) -> Array:
        """The array of a parameter, which must exist and have the shape of the value."""
        if owner is None:
            raise ArgumentError(f"{self.layer_name} has no trainable parameter {name!r}")
        array: Array = getattr(*owner)
        if array.shape != value.shape:
            same_shape(name, value, array.shape)
        return array


def parameter_of(layer: ParameterTree, name: str, *, frozen: bool = False) -> Array | None:
    """The parameter of a given name, found without listing all parameters; None if there is none."""
    owner = layer._owner(name, frozen)
    return None if owner is None else getattr(*owner)


def trained_by(layer: ParameterTree, gradients: Mapping[str, Array]) -> dict[str, Array]:
    """The live parameters that a step on these gradients changes, by name; gradients of frozen arrays are skipped.

    Raises
    ------
    InvalidOperationError
        If a parameter is not writeable.
    """
    return layer._trained(gradients, skip_frozen=True)


def require_same_sizes(name: str, layer: ParameterTree, like: ParameterTree) -> None:
    """Raise ArgumentError unless a layer has the sizes and the dtype of another one."""
    if (layer.input_size, layer.output_size, layer.dtype) != (like.input_size, like.output_size, like.dtype):
        expected = f"{like.input_size} -> {like.output_size} in {like.dtype}"
        raise ArgumentError(f"{name} must be {expected}, got {layer!r} in {layer.dtype}")


def become(layer: Any, twin: Any) -> None:
    """Turn a layer into its twin from `with_children`, in place; it keeps its name."""
    vars(layer).update(vars(twin) | {"layer_name": layer.layer_name})
    layer.reset_state()


def prefixed(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """A child's values, with the child's name prepended to theirs."""
    return {f"{prefix}.{name}": value for name, value in values.items()}


def new_name(layer: ParameterTree) -> str:
    """A name that is unique in this process, such as ``DenseLayer_17``."""
    return f"{type(layer).__name__}_{next(_numbers)}"
