"""`JitCompilable` (C#: IJitCompilable): a layer whose inference can be written down as a graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..graph import ComputationNode
    from ..graph.recording import Recordable


class JitCompilable:
    """Needs what a `Recordable` has: `apply`, the arrays, and sizes."""

    @property
    def supports_jit_compilation(self: Recordable) -> bool:
        """Whether `export_computation_graph` can record this layer: true for every layer of the package."""
        from ..graph import recording  # here, so that `import lora_np` need not wait for it

        return recording.is_recordable(self)

    def export_computation_graph(self: Recordable, input_nodes: list[ComputationNode]) -> ComputationNode:
        """The map of `predict` as a graph, with a copy of every parameter under its name.

        Parameters
        ----------
        input_nodes : list of ComputationNode
            Pass an empty list, and the new input node, which all branches share, is appended to it. Pass a node, such as
            the output of another graph, and this graph continues from there.

        Returns
        -------
        ComputationNode
            The output.

        Raises
        ------
        ArgumentError
            Not such a list, or the node in it has another size or dtype than the layer's input.
        NotSupportedError
            The `apply` of a layer inside does something that cannot be recorded; the message says which layer, and why.
        """
        from ..graph import recording

        return recording.record(self, input_nodes)
