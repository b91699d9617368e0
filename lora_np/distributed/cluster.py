"""Dask: an executor on a cluster, and predictions for Dask arrays."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, final

import numpy as np

from .._typing import Array
from .._validation import positive_int
from ..base import Layer
from ..errors import ArgumentError, NotSupportedError
from ..training.moment import Moment, fingerprint
from . import replicas
from .replicas import Given, Source

if TYPE_CHECKING:
    from dask.array import Array as DaskArray


PATIENCE = 10.0
"""How many seconds to wait for a result before checking that the scheduler is still alive."""


@contextmanager
def dask_executor(address: str | None = None, *, workers: int | None = None) -> Iterator[Executor]:
    """Context manager: an executor on a Dask cluster, for `fit_shards`.

    If a worker dies, another one repeats its task.

    Parameters
    ----------
    address : str, optional
        The address of a scheduler, such as ``"tcp://10.0.0.1:8786"``, whose workers have lora_np installed. By default, a
        cluster of processes is started on this machine, and stopped at the end of the block.
    workers : int, optional
        How many processes to start; by default, one per processor.

    Raises
    ------
    ArgumentError
        If both `address` and `workers` are given, or `workers` is not a positive integer.
    NotSupportedError
        If Dask is not installed.

    Notes
    -----
    Dask starts worker processes with one BLAS thread each, unless the environment sets ``OPENBLAS_NUM_THREADS``,
    ``MKL_NUM_THREADS`` or ``OMP_NUM_THREADS``.
    """
    count = None if workers is None else positive_int("workers", workers)
    if address is not None and count is not None:
        raise ArgumentError(f"workers must be None if an address is given: that cluster has its own, got {count}")
    distributed = _extra("distributed")
    with ExitStack() as stack:
        place: Any = address
        if address is None:
            # Any free port for the dashboard: a second cluster on this machine would warn about the default port.
            cluster = distributed.LocalCluster(n_workers=count, threads_per_worker=1, dashboard_address=":0")
            place = stack.enter_context(cluster)
        client = stack.enter_context(distributed.Client(place, set_as_default=False))
        yield _ClientExecutor(client)


@final
class _ClientExecutor(Executor):
    """Calls on a Dask cluster. Each call ends even if the scheduler is lost, which Dask's executor does not guarantee."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """The future of a call, which may run more than once."""
        if not _is_connected(self._client):
            raise ConnectionError(f"the connection to the Dask scheduler is {self._client.status}")
        future: Future[Any] = Future()
        task = self._client.submit(fn, *args, pure=False, **kwargs)
        task.add_done_callback(partial(_transfer, self._client, future))
        return future


def _is_connected(client: Any) -> bool:
    return client.status in ("running", "connecting")


def _transfer(client: Any, future: Future[Any], task: Any) -> None:
    """Pass the outcome of a finished Dask task on to a future."""
    if not future.set_running_or_notify_cancel():
        return
    while not future.done():
        try:
            future.set_result(task.result(timeout=PATIENCE))
        except Exception as error:
            # Fetching a result from a scheduler that has died might never end.
            is_slow = isinstance(error, TimeoutError) and task.status == "finished" and client.status == "running"
            if not is_slow:
                future.set_exception(error)


def predict(model: Layer, input: DaskArray, *, replica: Source | None = None) -> DaskArray:
    """The inference output for a Dask array, computed lazily, block by block.

    Parameters
    ----------
    model : Layer
        The result depends on its parameters and settings at the time of the call; later training does not change it.
    input : dask.array.Array, shape (..., input_size)
    replica : path or callable, optional
        Where each worker process gets the model from, as in `fit_shards`. By default, the model is part of the Dask graph.

    Returns
    -------
    dask.array.Array, shape (..., output_size)
        It has the model's dtype and the chunks of `input`, except that the last axis is a single chunk.

    Raises
    ------
    ArgumentError
        If `input` is not a Dask array, or its last axis is not `input_size`.
    NotSupportedError
        If Dask is not installed.
    """
    dask, arrays = _extra("dask"), _extra("dask.array")
    if not isinstance(input, arrays.Array):
        raise ArgumentError(f"input must be a dask.array.Array, got {input!r}; use model.predict for other arrays")
    if input.ndim == 0 or input.shape[-1] != model.input_size:
        raise ArgumentError(f"input must have shape (..., {model.input_size}), got {input.shape}")
    source: Source = Given(model.clone()) if replica is None else replica
    predictor = dask.delayed(_Predictor(source, fingerprint(model), Moment.of(model)), pure=False, traverse=False)
    rows = input.rechunk({-1: -1})
    return rows.map_blocks(
        _predict,
        predictor=predictor,
        dtype=model.dtype,
        chunks=(*rows.chunks[:-1], (model.output_size,)),
        meta=np.empty((0,) * input.ndim, model.dtype),
    )


class _Predictor(NamedTuple):
    source: Source
    fingerprint: str
    moment: Moment


def _predict(block: Array, predictor: _Predictor) -> Array:
    source, digest, moment = predictor
    with replicas.of(source, digest).at(moment) as model:
        return model.predict(block)


def _extra(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise NotSupportedError(f'this function needs Dask ({error}): pip install "lora_np[dask]"') from error
