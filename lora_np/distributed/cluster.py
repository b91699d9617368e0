"""Dask: an executor on a cluster, and predictions for arrays in blocks."""

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
from . import replicas
from .replicas import Given, Moment, Source, fingerprint

if TYPE_CHECKING:
    from dask.array import Array as DaskArray


PATIENCE = 10.0
"""Seconds after which to look whether the scheduler is still there."""


@contextmanager
def dask_executor(address: str | None = None, *, workers: int | None = None) -> Iterator[Executor]:
    """A block with an executor on a Dask cluster, for `fit_shards`.

    A task whose worker dies is repeated by another one.

    Parameters
    ----------
    address : str, optional
        Of a scheduler, such as ``"tcp://10.0.0.1:8786"``; its workers must have lora_np. If left out, a cluster of
        processes on this machine is started, and stopped in the end.
    workers : int, optional
        How many processes to start; as many as processors if left out.

    Raises
    ------
    NotSupportedError
        There is no Dask.

    Notes
    -----
    Dask starts worker processes with one BLAS thread each, unless the environment says otherwise
    (``OPENBLAS_NUM_THREADS``, ``MKL_NUM_THREADS``, ``OMP_NUM_THREADS``).
    """
    count = None if workers is None else positive_int("workers", workers)
    if address is not None and count is not None:
        raise ArgumentError("workers must be left out where an address is given: that cluster has its own")
    distributed = _extra("distributed")
    with ExitStack() as stack:
        place: Any = address
        if address is None:
            # The dashboard takes any free port, so that a second cluster on this machine brings no warning.
            cluster = distributed.LocalCluster(n_workers=count, threads_per_worker=1, dashboard_address=":0")
            place = stack.enter_context(cluster)
        client = stack.enter_context(distributed.Client(place, set_as_default=False))
        yield _ClientExecutor(client)


@final
class _ClientExecutor(Executor):
    """Calls on a Dask cluster; each ends, also where the scheduler is lost, which Dask's own executor does not ensure."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """A future of the call, which may run more than once."""
        if not _is_connected(self._client):
            raise ConnectionError(f"the connection to the Dask scheduler is {self._client.status}")
        future: Future[Any] = Future()
        task = self._client.submit(fn, *args, pure=False, **kwargs)
        task.add_done_callback(partial(_transfer, self._client, future))
        return future


def _is_connected(client: Any) -> bool:
    return client.status in ("running", "connecting")


def _transfer(client: Any, future: Future[Any], task: Any) -> None:
    """Give a future the outcome of a Dask task that has ended."""
    if not future.set_running_or_notify_cancel():
        return
    while not future.done():
        try:
            future.set_result(task.result(timeout=PATIENCE))
        except Exception as error:
            # Fetching a result from a scheduler that has died may never end.
            is_slow = isinstance(error, TimeoutError) and task.status == "finished" and client.status == "running"
            if not is_slow:
                future.set_exception(error)


def predict(model: Layer, input: DaskArray, *, replica: Source | None = None) -> DaskArray:
    """The output for inference of an array in blocks, lazily.

    Parameters
    ----------
    model : Layer
        Its parameters and settings of now; later training does not change the result.
    input : dask.array.Array, shape (..., input_size)
    replica : path or callable, optional
        As in `fit_shards`: where a worker gets the model from, once for each process. If left out, the model is a part
        of the graph.

    Returns
    -------
    dask.array.Array, shape (..., output_size)
        Of the model's dtype, in the blocks of `input`; the last axis is one block.

    Raises
    ------
    ArgumentError
        Another last axis, or no Dask array.
    NotSupportedError
        There is no Dask.
    """
    dask, arrays = _extra("dask"), _extra("dask.array")
    if not isinstance(input, arrays.Array):
        raise ArgumentError(f"input must be a dask.array.Array, got {input!r}; for other arrays there is model.predict")
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
        raise NotSupportedError(
            f'this needs Dask ({error}); an extra of lora_np brings it: pip install "lora_np[dask]"'
        ) from error
