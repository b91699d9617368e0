"""Data-parallel training on shards of data, and predictions for Dask arrays.

`fit_shards` runs on any `concurrent.futures.Executor`; `dask_executor` and `predict` need the extra
``pip install "lora_np[dask]"``.
"""

from .calls import InProcessExecutor as InProcessExecutor
from .cluster import dask_executor as dask_executor
from .cluster import predict as predict
from .training import fit_shards as fit_shards
