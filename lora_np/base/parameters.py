"""The arrays of a layer: by name, and as one vector. The only code that writes into them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from .._typing import Array
from .._validation import real_array, same_shape
from ..errors import ArgumentError, InvalidOperationError, NotSupportedError

_numbers = itertools.count(1)


class ParameterTree:
    """Arrays with names, and layers inside whose arrays have dotted names.

    The named arrays are the truth. The flat vector, files and optimizers are derived from them at each call.
    """

    parameter_names: ClassVar[tuple[str, ...]] = ()
    """Attributes that hold the layer's own parameters, in the order of the flat vector."""

    frozen_names: ClassVar[tuple[str, ...]] = ()
    """Attributes that hold its own arrays that never train, such as the random projections of VeRA."""

    frozen_children: frozenset[str] = frozenset()
    """Children whose parameters do not train; the gradient of the input still flows through them."""

    input_size: int
    output_size: int
    dtype: np.dtype[Any]
    layer_name: str

    def children(self) -> Mapping[str, Any]:
        """The layers inside this one, by name."""
        return {}

    def walk(self, prefix: str = "") -> dict[str, Any]:
        """The layer and all layers inside it, by dotted path; its own path is the empty string."""
        layers: dict[str, Any] = {prefix: self}
        for name, child in self.children().items():
            layers |= child.walk(f"{prefix}.{name}" if prefix else name)
        return layers

    def with_children(self, changed: Mapping[str, Any]) -> Self:
        """A layer like this one with others in the places of these names; all else is shared. Containers write it."""
        raise NotSupportedError(f"{self.layer_name}: a {type(self).__name__} does not say how to change its children")

    def replace(self, changed: Mapping[str, Any]) -> None:
        """Put other layers of the same sizes in the places of these names, all or none, in this very object.

        Raises
        ------
        ArgumentError
            An unknown name, or a layer that does not fit; nothing is changed.
        """
        for name in changed:
            if name not in self.children():
                raise ArgumentError(f"changed must name layers among {', '.join(self.children())}, got {name!r}")
        twin = self.with_children(changed)
        if (twin.input_size, twin.output_size) != (self.input_size, self.output_size):
            raise ArgumentError(
                f"changed must keep the sizes {self.input_size} -> {self.output_size}, "
                f"got {twin.input_size} -> {twin.output_size}"
            )
        if twin.dtype != self.dtype:
            raise ArgumentError(f"changed must keep the dtype {self.dtype}, got {twin.dtype}")
        vars(self).update(vars(twin) | {"layer_name": self.layer_name})
        self.reset_state()

    # ---------------------------------------------------------------- by name

    def named_parameters(self, *, frozen: bool = False) -> dict[str, Array]:
        """The live arrays by dotted name, in the order of the flat vector.

        Parameters
        ----------
        frozen : bool
            Whether to include the arrays that do not train.
        """
        names = self.parameter_names + self.frozen_names if frozen else self.parameter_names
        arrays: dict[str, Array] = {name: getattr(self, name) for name in names}
        for child_name, child in self.children().items():
            if frozen or child_name not in self.frozen_children:
                arrays |= prefixed(child_name, child.named_parameters(frozen=frozen))
        return arrays

    def parameter(self, name: str, *, frozen: bool = False) -> Array | None:
        """One of `named_parameters`, found without listing the others; None where there is none of this name."""
        owner = self._owner(name, frozen)
        return None if owner is None else getattr(*owner)

    def _owner(self, name: str, frozen: bool) -> tuple[ParameterTree, str] | None:
        """The layer that has this parameter, and the attribute there."""
        if name in self.parameter_names or (frozen and name in self.frozen_names):
            return self, name
        children = self.children()
        child_name = name
        while child_name := child_name.rpartition(".")[0]:  # a child's name may itself hold dots: the longest match wins
            child = children.get(child_name)
            if child is not None and (frozen or child_name not in self.frozen_children):
                owner: tuple[ParameterTree, str] | None = child._owner(name[len(child_name) + 1 :], frozen)
                if owner is not None:
                    return owner
        return None

    # ---------------------------------------------------------------- as one vector

    @property
    def parameter_count(self) -> int:
        """The number of trainable parameters: the length of the flat vector."""
        return sum(array.size for array in self.named_parameters().values())

    def get_parameters(self) -> Array:
        """A copy of all trainable parameters as one vector, row-major, in the order of `named_parameters`."""
        return self._flat(self.named_parameters().values())

    def set_parameters(self, parameters: Any) -> None:
        """Replace all trainable parameters, in place, by a vector such as `get_parameters` returns.

        Raises
        ------
        ArgumentError
            Wrong length, or not real numbers; nothing is changed.
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

    if TYPE_CHECKING:  # what `Layer` has

        def reset_state(self) -> None: ...  # noqa: D102

    # ---------------------------------------------------------------- writing

    def _trained(self, values: Mapping[str, Array]) -> list[tuple[Array, Array]]:
        """Each value with the trainable parameter that it is for, after a check that all of them may be written to."""
        pairs = []
        for name, value in values.items():
            layer, attribute, parameter = self._place(name, value, frozen=False)
            if not parameter.flags.writeable:
                raise InvalidOperationError(
                    f"{self.layer_name}: {attribute} of {layer.layer_name} is packed, so it cannot train; unpack() first"
                )
            pairs.append((parameter, value))
        return pairs

    def _assign(self, values: Mapping[str, Array]) -> None:
        """Replace arrays, frozen or not, in place, all or none."""
        places = [(*self._place(name, value, frozen=True), value) for name, value in values.items()]
        for layer, attribute, array, value in places:
            if not array.flags.writeable:  # it is packed: layers that share it keep it
                array = np.empty_like(array)
                setattr(layer, attribute, array)
            array[...] = value

    def _place(self, name: str, value: Array, *, frozen: bool) -> tuple[ParameterTree, str, Array]:
        """The layer that has a parameter, the attribute there, and the array, whose shape the value must have."""
        owner = self._owner(name, frozen)
        if owner is None:
            raise ArgumentError(f"{self.layer_name} has no such trainable parameter: {name!r}")
        array: Array = getattr(*owner)
        same_shape(name, value, array.shape)
        return *owner, array


def prefixed(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """A child's values by name, under the child's own name."""
    return {f"{prefix}.{name}": value for name, value in values.items()}


def new_name(layer: ParameterTree) -> str:
    """A name that no other layer of this process has, such as ``DenseLayer_17``."""
    return f"{type(layer).__name__}_{next(_numbers)}"
