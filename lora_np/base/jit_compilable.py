"""`JitCompilable` (C#: IJitCompilable): a layer whose inference can be exported as a computation graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..graph import ComputationNode
    from ..graph.recording import Recordable


class JitCompilable:
    """Needs `apply`, the arrays and the sizes: the Protocol `Recordable`."""

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
            If it is empty, the new input node, which all branches share, is appended to it. If it holds a node, such as
            the output of another graph, this graph continues from there.

        Returns
        -------
        ComputationNode
            The output.

        Raises
        ------
        ArgumentError
            If it is not such a list, or if the node's size or dtype differs from that of the layer's input.
        NotSupportedError
            If the `apply` of a layer inside does something that cannot be recorded; the message names the layer and why.
        """
        from ..graph import recording

        return recording.record(self, input_nodes)
