"""The adapters. To add one, write a file and add a line here."""

from .additive import AdditiveAdapter as AdditiveAdapter
from .additive import Selection as Selection
from .base import LoRAAdapterBase as LoRAAdapterBase
from .dora import DoRAAdapter as DoRAAdapter
from .dylora import DyLoRAAdapter as DyLoRAAdapter
from .multilora import MultiLoRAAdapter as MultiLoRAAdapter
from .standard import StandardLoRAAdapter as StandardLoRAAdapter
from .vera import VeRAAdapter as VeRAAdapter
from .vera import VeRALayer as VeRALayer
