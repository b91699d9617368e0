"""`Layer`: a pure pair, `apply` and `vjp`, and the same pair with a memory, `forward`, `backward` and `update_parameters`.

Its arrays are in parameters.py; each of its bases is one interface of the documented API, in the file of that name.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, final, overload

import numpy as np

from .._typing import Array, Cache, Gradients, Parts
from .._validation import finite_float, float_dtype, last_axis, positive_int, real_array, same_shape
from ..errors import InvalidOperationError
from ..run import Rank, Run
from .diagnostics_provider import DiagnosticsProvider
from .disposable import Disposable
from .jit_compilable import JitCompilable
from .listening import Bond, Listening
from .packable import Packable
from .parameters import new_name
from .serializable import Serializable
from .training_mode import TrainingMode
from .weight_loadable import WeightLoadable


class _Pass(NamedTuple):
    """What `forward` remembers."""

    cache: Cache
    output_shape: tuple[int, ...]
    run: Run
    bonds: tuple[Bond, ...]


class Layer(
    Serializable, WeightLoadable, DiagnosticsProvider, JitCompilable, Disposable, TrainingMode, Listening, Packable
):
    """A differentiable map of rows, ``(..., input_size) -> (..., output_size)``, with named parameters.

    A concrete layer writes `apply` and `vjp`, side by side, and names its arrays in `parameter_names`. All else follows.

    Parameters
    ----------
    input_size, output_size : int
        Sizes of the last axis before and after.
    dtype : {float64, float32}
        Of parameters and outputs; inputs are cast to it.
    """

    _pass: _Pass | None
    _pending: tuple[Gradients, _Pass] | None  # of the last `backward`

    def __init__(self, input_size: int, output_size: int, dtype: Any = np.float64) -> None:
        self.input_size = positive_int("input_size", input_size)
        self.output_size = positive_int("output_size", output_size)
        self.dtype = float_dtype(dtype)
        self.layer_name = new_name(self)
        self._forget()

    # ---------------------------------------------------------------- pure: what a concrete layer writes

    @abstractmethod
    def apply(self, x: Array, run: Run) -> tuple[Array, Cache]:
        """The map itself: the output, and a cache of what `vjp` needs. It depends on its arguments and the arrays alone."""

    @abstractmethod
    def vjp(
        self, dy: Array, cache: Cache, *, parameters: bool = True, inputs: bool = True
    ) -> tuple[Array | None, Gradients]:
        """The vector-Jacobian product of `apply`: ``Jᵀ dy`` for the input, and for each parameter by name.

        Gradients are sums over rows. A parameter without one is frozen, or was not used. What is not asked for
        (`parameters`, `inputs`) is not computed.
        """

    def children(self) -> Mapping[str, Layer]:
        """The layers inside this one, by name."""
        return {}

    def active_parts(self, cache: Cache) -> Parts:
        """For each array of which this pass trains only a part: that part."""
        return {}

    def compute_auxiliary_loss(self) -> Any:
        """The penalties of the trainable weights, to be added to the loss; `vjp` already includes their gradients."""
        trained = (child for name, child in self.children().items() if name not in self.frozen_children)
        return sum(child.compute_auxiliary_loss() for child in trained)

    # ---------------------------------------------------------------- the pair with a memory

    def forward(
        self, input: Any, *, tasks: Iterable[str | None] | None = None, rank: Rank | Iterable[int] | None = None
    ) -> Array:
        """The output, in the layer's mode; remembers what `backward` needs. The caller may reuse the input's memory.

        Parameters
        ----------
        input : array, shape (..., input_size)
        tasks : sequence of str or None, optional
            The task of each entry of the first axis, at every `MultiLoRAAdapter`; None is the base alone. Left out, each
            has its current task. The `backward` that follows gives every task present its own gradients.
        rank : int, or sequence of int, or callable, optional
            The rank of every `DyLoRAAdapter`: one for the pass; one for each entry of the first axis; or a rule that gives
            an adapter its rank. Left out, it is drawn in training, once for all layers, and each adapter's deployment rank
            in evaluation.

        Raises
        ------
        ArgumentError
            An input of another size; tasks or ranks that do not fit, or that no layer inside has; nothing is changed.
        """
        x = self.check_input(input, copy=True)
        run = self.new_run(x, tasks=tasks, rank=rank, training=self.is_training)
        y, cache = self.apply(x, run)
        self._pass = _Pass(cache, y.shape, run, self._bonds(run))
        return unaliased(y, x)

    __call__ = forward

    def predict(
        self, input: Any, *, tasks: Iterable[str | None] | None = None, rank: Rank | Iterable[int] | None = None
    ) -> Array:
        """The output for inference, in any mode: nothing is random or remembered; safe to call from many threads.

        The parameters are those of `forward`.
        """
        x = self.check_input(input)
        y, _ = self.apply(x, self.new_run(x, tasks=tasks, rank=rank, keep=False))
        return unaliased(y, x)

    def check_input(self, input: Any, *, copy: bool = False, name: str = "input") -> Array:
        """The input as `apply` takes it, or an ArgumentError. A layer of other inputs than rows of numbers overrides it."""
        x = real_array(name, input, self.dtype, copy=copy)
        last_axis(name, x, self.input_size)
        return x

    @overload
    def backward(self, output_gradient: Any, *, need_input_grad: Literal[True] = True) -> Array: ...
    @overload
    def backward(self, output_gradient: Any, *, need_input_grad: bool) -> Array | None: ...
    def backward(self, output_gradient: Any, *, need_input_grad: bool = True) -> Array | None:
        """The gradient of the input, from that of the last output; remembers those of the parameters.

        A second call replaces the gradients of the first. Without `need_input_grad` the result is None, and the product
        that it takes is saved. Raises InvalidOperationError where there was no `forward` since the last step, or where
        the task has changed since.
        """
        if self._pass is None:
            raise InvalidOperationError(f"{self.layer_name}: backward needs a forward pass first; a step uses it up")
        self._check_bonds("backward", self._pass.run, self._pass.bonds)
        dy = real_array("output_gradient", output_gradient, self.dtype)
        same_shape("output_gradient", dy, self._pass.output_shape)
        dx, gradients = self.vjp(dy, self._pass.cache, inputs=need_input_grad)
        self._pending = gradients, self._pass
        return None if dx is None else unaliased(dx, dy)

    def update_parameters(self, learning_rate: Any) -> None:
        """One step of gradient descent, ``p -= learning_rate · dp``. It uses up the pass and its gradients.

        An array in place of the rate is the documented overload that replaces all parameters: see `set_parameters`.
        """
        if isinstance(learning_rate, list | tuple) or (isinstance(learning_rate, np.ndarray) and learning_rate.ndim):
            self.set_parameters(learning_rate)
        else:
            step = np.array(-finite_float("learning_rate", learning_rate), self.dtype)
            for p, dp in self._trained(self.pending_gradients()):
                p += step * dp
            self._forget()

    @final
    def apply_updates(self, updates: Mapping[str, Array]) -> None:
        """Add an update to each named parameter, in place, all or none. Uses up the pass and its gradients."""
        for p, update in self._trained({name: real_array(name, update) for name, update in updates.items()}):
            p += update
        self._forget()

    # ---------------------------------------------------------------- what is remembered

    @property
    def gradients(self) -> Mapping[str, Array]:
        """The gradients of the last `backward` by name; empty before it and after a step."""
        return MappingProxyType({} if self._pending is None else self._pending[0])

    @property
    def last_run(self) -> Run | None:
        """What the last `forward` knew; None before it and after a step."""
        return None if self._pass is None else self._pass.run

    @property
    def pending_parts(self) -> Parts:
        """The trained part of each pending gradient that is not trained as a whole."""
        return {} if self._pending is None else self.active_parts(self._pending[1].cache)

    def pending_gradients(self) -> Mapping[str, Array]:
        """`gradients`, for a step: raises InvalidOperationError where there are none, or where the task has changed."""
        if self._pending is not None:
            self._check_bonds("a step", self._pending[1].run, self._pending[1].bonds)
        elif self.supports_training:
            raise InvalidOperationError(f"{self.layer_name}: a step needs the gradients of a backward pass first")
        return self.gradients

    def get_parameter_gradients(self) -> Array:
        """The pending gradients as one vector; exactly zero where there is none."""
        arrays = self.named_parameters()
        return self._flat(self.gradients.get(name, np.zeros_like(array)) for name, array in arrays.items())

    def clear_gradients(self) -> None:
        """Drop the pending gradients."""
        self._pending = None

    def reset_state(self) -> None:
        """Drop what `forward` and `backward` remember, here and in every child."""
        for layer in self.walk().values():
            layer._forget()

    def _forget(self) -> None:
        # After a step, what the pass computed is not true of the new parameters; and its arrays take most of the memory.
        self._pass = None
        self.clear_gradients()

    def __getstate__(self) -> dict[str, Any]:
        # A pending pass belongs to the layer that ran it: copies and pickles start without one.
        return self.__dict__ | {"_pass": None, "_pending": None}

    if TYPE_CHECKING:

        def walk(self, prefix: str = "") -> dict[str, Layer]: ...  # noqa: D102


def unaliased(result: Array, argument: Array) -> Array:
    """The result, or a copy where it shares memory with an argument that somebody else may write to."""
    return result.copy() if np.may_share_memory(result, argument) else result
