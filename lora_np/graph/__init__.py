"""Computation graphs: `Layer.export_computation_graph` records them; the functions here rewrite and draw them."""

from .drawing import to_dot as to_dot
from .drawing import to_svg as to_svg
from .node import ComputationNode as ComputationNode
from .optimising import optimise as optimise
