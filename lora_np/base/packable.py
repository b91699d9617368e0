"""`Packable`: copies weights that do not train into the memory layout that multiplies fastest.

The kernels hold the copies, one set per array: a packed array is read-only, and every product with it is faster. Formulas
do not mention packing.
"""

from __future__ import annotations

from typing import Literal, Self, TypeAlias

import numpy as np

from .. import kernels
from .._typing import Array
from .._validation import one_of
from .parameters import ParameterTree

Memory: TypeAlias = Literal["lean", "fast", "max"]


class Packable(ParameterTree):
    """Mixin that packs weights; requires the arrays. Layers list the matrices to pack in `_matrices`."""

    def _matrices(self) -> tuple[Array, ...]:
        """The matrices by which this layer itself multiplies its input, each of shape (input_size, output_size)."""
        return ()

    def pack(self, memory: Memory = "fast") -> Self:
        """Copy the weights that do not train into the memory layout that multiplies fastest; returns the layer.

        Packed arrays are read-only. Replacing one with `set_parameters`, `set_parameter`, `load_weights` or `deserialize`,
        or unfreezing its layer, discards the copies; clones and pickles have none.

        Parameters
        ----------
        memory : {"lean", "fast", "max"}, default "fast"
            ``"lean"``: no copies, as without packing. ``"fast"``: one copy of each weight, for `forward` and `predict`.
            ``"max"``: a second copy, for `backward`. `estimate_memory` returns their size.

        Notes
        -----
        Packing applies to frozen children (an adapter's base, layers frozen with ``Sequential.freeze``), and to a
        DenseLayer or FullyConnectedLayer on which `pack` is called directly. On processors where packing is not known to be
        faster, and of weights kept as BF16, nothing is copied. Do not write through a view taken before packing: NumPy
        cannot prevent it, and the copy would become stale.
        """
        memory = one_of("memory", memory, ("lean", "fast", "max"))  # type: ignore[assignment]
        for layer in self._at_rest() if self.children() else [self]:
            if memory == "lean":
                layer._unpack_own()
            else:
                for matrix in layer._matrices():
                    kernels.pack(matrix, backward=memory == "max")
                    layer._make_read_only(matrix)
        return self

    def unpack(self) -> Self:
        """Discard all packed copies and let the arrays be written to; returns the layer.

        Arrays that could not be written to before either, such as those of a memory-mapped file, become copies.
        """
        for layer in self.walk().values():
            layer._unpack_own()
        return self

    def estimate_memory(self) -> dict[str, int]:
        """The size in bytes of the ``"trainable"`` and ``"frozen"`` arrays, and of the ``"packed"`` copies."""
        trainable = sum(array.nbytes for array in self.named_parameters().values())
        everything = self.named_parameters(frozen=True).values()
        frozen = sum(array.nbytes for array in everything) - trainable
        return {"trainable": trainable, "frozen": frozen, "packed": sum(map(kernels.packed_bytes, everything))}

    def _make_read_only(self, matrix: Array) -> None:
        """Protect the parameter that a matrix is a view of, also if the parameter is itself a view."""
        if isinstance(matrix, kernels.StoredMatrix):
            return
        for name in self.parameter_names:
            if np.may_share_memory(getattr(self, name), matrix):
                getattr(self, name).flags.writeable = False

    def _unpack_own(self) -> None:
        for name in self.parameter_names:
            array = getattr(self, name)
            if not (array.flags.writeable or kernels.unpack(array)):  # a memory-mapped file stays as it is
                setattr(self, name, array.copy(order="K"))

    def _at_rest(self) -> list[Packable]:
        """The layers inside this one that do not train."""
        found: list[Packable] = []
        for name, child in self.children().items():
            found += child.walk().values() if name in self.frozen else child._at_rest()
        return found
