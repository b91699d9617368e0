"""`Packable`: weights that do not train, copied once into the form in which they are multiplied fastest.

The copies belong to the arrays, inside the kernels: a packed array is read-only, and every product with it is faster. No
formula mentions packing.
"""

from __future__ import annotations

from typing import Literal, Self, TypeAlias

from .. import kernels
from .._typing import Array
from .._validation import one_of
from .parameters import ParameterTree

Memory: TypeAlias = Literal["lean", "fast", "max"]


class Packable(ParameterTree):
    """Needs the arrays; a layer that multiplies by matrices lists them in `_matrices`."""

    def _matrices(self) -> tuple[Array, ...]:
        """The layer's own matrices that multiply its input, as (input_size, output_size)."""
        return ()

    def pack(self, memory: Memory = "fast") -> Self:
        """Copy every weight that does not train into the form in which it is multiplied fastest; returns the layer.

        A packed array is read-only. Writing to it by `set_parameters`, `set_parameter`, `load_weights` or `deserialize`,
        and unfreezing its layer, drop the copy; clones and pickles have none.

        Parameters
        ----------
        memory : {"lean", "fast", "max"}, default "fast"
            ``"lean"``: no copies, as without packing. ``"fast"``: one copy of each weight, for `forward` and `predict`.
            ``"max"``: two, for `backward` too. `estimate_memory` tells how large they are.

        Notes
        -----
        What does not train: the frozen children (an adapter's base, layers named by ``Sequential.freeze``), and a
        DenseLayer or FullyConnectedLayer on which `pack` is called directly. On processors where packing is not known to be
        faster, nothing is copied. Do not write through a view taken before packing: NumPy cannot forbid it, and the copy
        would be stale.
        """
        memory = one_of("memory", memory, ("lean", "fast", "max"))  # type: ignore[assignment]
        for layer in self._at_rest() if self.children() else [self]:
            if memory == "lean":
                layer._unpack_own()
            else:
                for matrix in layer._matrices():
                    kernels.pack(matrix, backward=memory == "max")
        return self

    def unpack(self) -> Self:
        """Drop every packed copy; the arrays can be written to again. Returns the layer."""
        for layer in self.walk().values():
            layer._unpack_own()
        return self

    def estimate_memory(self) -> dict[str, int]:
        """Bytes of the arrays by kind: ``"trainable"``, ``"frozen"`` and ``"packed"``, the copies that `pack` made."""
        trainable = sum(array.nbytes for array in self.named_parameters().values())
        everything = self.named_parameters(frozen=True).values()
        frozen = sum(array.nbytes for array in everything) - trainable
        return {"trainable": trainable, "frozen": frozen, "packed": sum(map(kernels.packed_bytes, everything))}

    def _unpack_own(self) -> None:
        for name in self.parameter_names:
            array = getattr(self, name)
            if not array.flags.writeable:  # other layers may share it: this one gets a copy
                setattr(self, name, array.copy(order="K"))

    def _at_rest(self) -> list[Packable]:
        """The layers inside this one that do not train."""
        found: list[Packable] = []
        for name, child in self.children().items():
            found += child.walk().values() if name in self.frozen else child._at_rest()
        return found
