"""The computation graph of a layer: `Layer.export_computation_graph` makes it, the functions here work on it."""

from .drawing import to_dot as to_dot
from .drawing import to_svg as to_svg
from .node import ComputationNode as ComputationNode
from .optimising import optimise as optimise
