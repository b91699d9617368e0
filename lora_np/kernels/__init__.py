"""Matrix products for layers, instead of ``@``, as fast as NumPy's BLAS can run them; and a selection of elements."""

from .factor_memory import FactorMemory as FactorMemory
from .factor_memory import Place as Place
from .panels import pack as pack
from .panels import packed_bytes as packed_bytes
from .panels import unpack as unpack
from .products import add as add
from .products import product as product
from .products import sum_outer as sum_outer
from .products import sum_rows as sum_rows
from .selecting import zero_where as zero_where
from .stacks import multiply_twice as multiply_twice
from .stacks import outer_each as outer_each
from .stacks import outer_rows as outer_rows
from .stored import StoredMatrix as StoredMatrix
