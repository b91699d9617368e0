"""`JitCompilable` (C#: IJitCompilable): layers can be exported as computation graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..graph import ComputationNode
    from ..graph.recording import Recordable


class JitCompilable:
    """Mixin that exports inference as a graph; requires the protocol `Recordable`: `apply`, the arrays and the sizes."""

    @property
    def supports_jit_compilation(self: Recordable) -> bool:
        """Whether `export_computation_graph` can record this layer, whose inputs must be numbers, not token ids."""
        from ..graph import recording  # imported here to keep `import lora_np` fast

        return recording.is_recordable(self)

    def export_computation_graph(self: Recordable, input_nodes: list[ComputationNode]) -> ComputationNode:
        """The function that `predict` computes, as a graph that holds a copy of every parameter under its name.

        Parameters
        ----------
        input_nodes : list of ComputationNode
            If empty, a new input node, shared by all branches, is appended. If it holds a node, such as the output of
            another graph, this graph continues from that node.

        Returns
        -------
        ComputationNode
            The output node.

        Raises
        ------
        ArgumentError
            If `input_nodes` is not such a list, or if the node's size or dtype differs from that of the layer's input.
        NotSupportedError
            If `apply` of this layer, or of one inside it, cannot be recorded; the message names the layer and the reason.
        """
        from ..graph import recording

        return recording.record(self, input_nodes)
