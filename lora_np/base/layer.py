"""`Layer`: a pure pair, `apply` and `vjp`, and the same pair with a memory: `forward`, `backward`, `update_parameters`.

Its arrays and children are in parameters.py. Each of its other bases is one interface of the documented API, in the file of
that name.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, final, overload

import numpy as np

from .._typing import Array, Cache, Gradients
from .._validation import finite_float, float_dtype, last_axis, positive_int, real_array, same_shape
from ..errors import InvalidOperationError
from ..run import EVALUATION, Rank, Run
from .diagnostics_provider import DiagnosticsProvider
from .disposable import Disposable
from .jit_compilable import JitCompilable
from .listening import Listening
from .memory import Pass, Pending, unaliased
from .packable import Packable
from .parameters import new_name
from .serializable import Serializable
from .training_mode import TrainingMode
from .weight_loadable import WeightLoadable


class Layer(
    Serializable, WeightLoadable, DiagnosticsProvider, JitCompilable, Disposable, TrainingMode, Listening, Packable
):
    """A differentiable map of rows, ``(..., input_size) -> (..., output_size)``, with named parameters.

    A concrete layer implements `apply` and `vjp`, side by side, and names its arrays in `parameter_names`.

    Parameters
    ----------
    input_size, output_size : int
    dtype : {float64, float32}
        Of parameters and outputs; inputs are cast to it.
    """

    _pass: Pass | None  # of the last `forward`
    _pending: tuple[Gradients, Pass] | None  # of the last `backward`

    def __init__(self, input_size: int, output_size: int, dtype: Any = np.float64) -> None:
        self.input_size = positive_int("input_size", input_size)
        self.output_size = positive_int("output_size", output_size)
        self.dtype = float_dtype(dtype)
        self.layer_name = new_name(self)
        self._forget()

    # ---------------------------------------------------------------- pure: implemented by each layer

    @abstractmethod
    def apply(self, x: Array, run: Run) -> tuple[Array, Cache]:
        """The map itself: the output, and a cache for `vjp`. A function of its arguments and of the arrays alone."""

    @abstractmethod
    def vjp(
        self, dy: Array, cache: Cache, *, parameters: bool = True, inputs: bool = True
    ) -> tuple[Array | None, Gradients]:
        """The vector-Jacobian product of `apply`: ``Jᵀ dy`` with respect to the input, and to each parameter by name.

        Gradients are sums over rows. Frozen parameters, and those that the pass did not use, have none. `parameters` and
        `inputs` say which gradients to compute; the others are skipped.
        """

    # ---------------------------------------------------------------- the pair with a memory

    def forward(
        self, input: Any, *, tasks: Iterable[str | None] | None = None, rank: Rank | Iterable[int] | None = None
    ) -> Array:
        """The output, in the layer's mode. It remembers what `backward` needs; the caller may reuse the input's memory.

        Parameters
        ----------
        input : array, shape (..., input_size)
        tasks : sequence of str or None, optional
            For each `MultiLoRAAdapter`, the task of each entry of the first axis; None means the base alone. By default,
            each adapter's current task. The following `backward` computes gradients for every task present.
        rank : int, sequence of int, or callable, optional
            For each `DyLoRAAdapter`, the rank: one for the pass, one for each entry of the first axis, or a function from
            the adapter to either. By default, it is drawn once for the whole model in training; in evaluation, it is each
            adapter's deployment rank.

        Raises
        ------
        ArgumentError
            If the input has the wrong size, or if tasks or ranks do not fit it or the layer. Nothing is changed.
        """
        x = self.check_input(input, copy=True)
        listeners = self._listeners()
        run = self._run(x, listeners, tasks=tasks, rank=rank, training=self.is_training)
        y, cache = self.apply(x, run)
        self._pass = Pass.of(cache, y, run, listeners)
        return unaliased(y, x)

    __call__ = forward

    def predict(
        self, input: Any, *, tasks: Iterable[str | None] | None = None, rank: Rank | Iterable[int] | None = None
    ) -> Array:
        """The output for inference, in any mode: nothing is random or remembered, and many threads may call it.

        The parameters are those of `forward`.
        """
        x = self.check_input(input)
        y, _ = self.apply(x, self.new_run(x, tasks=tasks, rank=rank, keep=False))
        return unaliased(y, x)

    def check_input(self, input: Any, *, copy: bool = False, name: str = "input") -> Array:
        """The input as `apply` takes it, or an ArgumentError. Layers whose inputs are not rows of numbers override it."""
        x = real_array(name, input, self.dtype, copy=copy)
        last_axis(name, x, self.input_size)
        return x

    @overload
    def backward(self, output_gradient: Any, *, need_input_grad: Literal[True] = True) -> Array: ...
    @overload
    def backward(self, output_gradient: Any, *, need_input_grad: bool) -> Array | None: ...
    def backward(self, output_gradient: Any, *, need_input_grad: bool = True) -> Array | None:
        """The gradient with respect to the input, given that of the last output; the parameters' gradients are remembered.

        A second call replaces the gradients of the first. Without `need_input_grad` the result is None, which saves a
        matrix product.

        Raises
        ------
        InvalidOperationError
            If there has been no `forward` since the last step, or if a task has changed since.
        ArgumentError
            If the shape differs from that of the last output.
        """
        if self._pass is None:
            raise InvalidOperationError(f"{self.layer_name}: backward needs a forward pass first; a step consumes it")
        self._pass.check(self.layer_name, "backward")
        dy = real_array("output_gradient", output_gradient, self.dtype)
        same_shape("output_gradient", dy, self._pass.output_shape)
        dx, gradients = self.vjp(dy, self._pass.cache, inputs=need_input_grad)
        self._pending = gradients, self._pass
        return None if dx is None else unaliased(dx, dy)

    def update_parameters(self, learning_rate: Any) -> None:
        """One step of gradient descent, ``p -= learning_rate · dp``, which consumes the pass and its gradients.

        Given an array instead of a rate, it replaces all parameters, as documented: see `set_parameters`.
        """
        if isinstance(learning_rate, list | tuple) or (isinstance(learning_rate, np.ndarray) and learning_rate.ndim):
            self.set_parameters(learning_rate)
        else:
            step = np.array(-finite_float("learning_rate", learning_rate), self.dtype)
            for p, dp in self._trained(self._pending_step().gradients, skip_frozen=True):
                p += step * dp
            self._forget()

    @final
    def apply_updates(self, updates: Mapping[str, Array]) -> None:
        """Add an update to each named parameter, in place, all or none. It consumes the pass and its gradients."""
        for p, update in self._trained({name: real_array(name, update) for name, update in updates.items()}):
            p += update
        self._forget()

    # ---------------------------------------------------------------- what is remembered

    @property
    def gradients(self) -> Mapping[str, Array]:
        """The gradients of the last `backward` by name; empty before it and after a step."""
        return MappingProxyType({} if self._pending is None else self._pending[0])

    def _pending_step(self) -> Pending:
        """`gradients` for a step; raises InvalidOperationError if there are none, or if a task has changed since."""
        if self._pending is not None:
            gradients, done = self._pending
            done.check(self.layer_name, "a step")
            return Pending(gradients, done.parts, done.run)
        if self.supports_training:
            raise InvalidOperationError(f"{self.layer_name}: a step needs the gradients of a backward pass first")
        return Pending({}, {}, EVALUATION)

    def clear_gradients(self) -> None:
        """Drop the pending gradients."""
        self._pending = None

    def reset_state(self) -> None:
        """Drop what `forward` and `backward` remember, in this layer and in every layer inside."""
        for layer in self.walk().values():
            layer._forget()

    def _forget(self) -> None:
        # After a step the pass no longer belongs to the parameters; and its arrays take most of the memory.
        self._pass = None
        self.clear_gradients()

    def __getstate__(self) -> dict[str, Any]:
        # A pending pass belongs to the layer that ran it: copies and pickles start without one.
        return self.__dict__ | {"_pass": None, "_pending": None}

    if TYPE_CHECKING:

        def walk(self, prefix: str = "") -> dict[str, Layer]: ...  # noqa: D102
