"""The layers: each implements the pure functions `apply` and `vjp`; `Layer` provides the rest."""

from ..base import Layer as Layer
from .activation import ActivationLayer as ActivationLayer
from .composite import Composite as Composite
from .dense import AffineLayer as AffineLayer
from .dense import DenseLayer as DenseLayer
from .dense import FullyConnectedLayer as FullyConnectedLayer
from .embedding import Embedding as Embedding
from .lora import LoRALayer as LoRALayer
from .low_rank import LowRankLayer as LowRankLayer
from .normalization import LayerNorm as LayerNorm
from .normalization import RMSNorm as RMSNorm
from .sequential import Sequential as Sequential
