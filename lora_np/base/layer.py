"""`Layer`: the pure functions `apply` and `vjp`, and the stateful `forward`, `backward` and `update_parameters` on top."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, final, overload

import numpy as np

from .._typing import Array, Cache, Gradients
from .._validation import finite_float, float_dtype, last_axis, mapping, positive_int, real_array, same_shape
from ..errors import InvalidOperationError
from ..run import Rank, Run
from .diagnostics_provider import DiagnosticsProvider
from .disposable import Disposable
from .jit_compilable import JitCompilable
from .listening import Listening
from .memory import Pass, unaliased
from .packable import Packable
from .parameters import new_name
from .serializable import Serializable
from .training_mode import TrainingMode
from .weight_loadable import WeightLoadable


class Layer(
    Serializable, WeightLoadable, DiagnosticsProvider, JitCompilable, Disposable, TrainingMode, Listening, Packable
):
    """A differentiable function of rows, ``(..., input_size) -> (..., output_size)``, with named parameters.

    Subclasses implement `apply` and `vjp`, and list the names of their arrays in `parameter_names`.

    Parameters
    ----------
    input_size, output_size : int
    dtype : {float64, float32}
        The dtype of parameters and outputs; inputs are cast to it.
    """

    _pass: Pass | None  # from the last `forward`
    _pending: tuple[Gradients, Pass] | None  # from the last `backward`

    def __init__(self, input_size: int, output_size: int, dtype: Any = np.float64) -> None:
        self.input_size = positive_int("input_size", input_size)
        self.output_size = positive_int("output_size", output_size)
        self.dtype = float_dtype(dtype)
        self.layer_name = new_name(self)
        self._forget()

    @abstractmethod
    def apply(self, x: Array, run: Run) -> tuple[Array, Cache]:
        """The output, and a cache for `vjp`. Both depend only on the arguments and on the layer's arrays."""

    @abstractmethod
    def vjp(
        self, dy: Array, cache: Cache, *, parameters: bool = True, inputs: bool = True
    ) -> tuple[Array | None, Gradients]:
        """The vector-Jacobian product of `apply`: ``Jᵀ dy`` with respect to the input, and to each parameter by name.

        Gradients are summed over rows. Frozen parameters, and parameters that the pass did not use, have none. `parameters`
        and `inputs` select which gradients to compute.
        """

    # ---------------------------------------------------------------- stateful: built on `apply` and `vjp`

    def forward(
        self, input: Any, *, tasks: Iterable[str | None] | None = None, rank: Rank | Iterable[int] | None = None
    ) -> Array:
        """The output in the current mode; stores a copy of the input and everything else that `backward` needs.

        Parameters
        ----------
        input : array, shape (..., input_size)
        tasks : sequence of str or None, optional
            For each `MultiLoRAAdapter`, the task of each entry along the first axis; None means the base alone. By default,
            the current task. The `backward` that follows computes gradients for every task present.
        rank : int, sequence of int, or callable, optional
            For each `DyLoRAAdapter` or task with ranks: a rank, one for each entry along the first axis, or a function from
            it to either. By default, one draw for the whole model in training mode, the deployment rank in evaluation mode.

        Raises
        ------
        ArgumentError
            If the input has the wrong size, or if tasks or ranks do not match the input or the layer; nothing is changed.
        """
        x = self.check_input(input, copy=True)
        listeners = self._listeners()
        run = self._run(x, listeners, tasks, rank, self._is_training)
        y, cache = self.apply(x, run)
        self._pass = Pass.of(cache, y, run, listeners)
        return unaliased(y, x)

    __call__ = forward

    def predict(
        self, input: Any, *, tasks: Iterable[str | None] | None = None, rank: Rank | Iterable[int] | None = None
    ) -> Array:
        """The inference output, whatever the mode. It is deterministic and stores nothing, so threads may share the layer.

        See `forward` for the parameters.
        """
        x = self.check_input(input)
        y, _ = self.apply(x, self.new_run(x, tasks=tasks, rank=rank, keep=False))
        return unaliased(y, x)

    def check_input(self, input: Any, *, copy: bool = False, name: str = "input") -> Array:
        """Check and convert an input for `apply`. Layers whose inputs are not rows of numbers override it."""
        x = real_array(name, input, self.dtype, copy=copy)
        last_axis(name, x, self.input_size)
        return x

    def _output_shape(self, x: Array) -> tuple[int, ...]:
        """The shape of the output for a checked input."""
        return (*x.shape[:-1], self.output_size)

    @overload
    def backward(self, output_gradient: Any, *, need_input_grad: Literal[True] = True) -> Array: ...
    @overload
    def backward(self, output_gradient: Any, *, need_input_grad: bool) -> Array | None: ...
    def backward(self, output_gradient: Any, *, need_input_grad: bool = True) -> Array | None:
        """The gradient with respect to the input, given that of the last output; stores the gradients of the parameters.

        Repeated calls replace these gradients. Without `need_input_grad`, the result is None, which saves a matrix product.

        Raises
        ------
        InvalidOperationError
            If `forward` has not been called since the last step, or if a task has changed since.
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
        """Take a gradient-descent step, ``p -= learning_rate · dp``, which consumes the pass and its gradients.

        As in the documented API, an array instead of a rate replaces all parameters: see `set_parameters`.
        """
        if isinstance(learning_rate, (list, tuple)) or (isinstance(learning_rate, np.ndarray) and learning_rate.ndim):
            self.set_parameters(learning_rate)
        else:
            rate = np.array(finite_float("learning_rate", learning_rate), self.dtype)
            gradients, _ = self._pending_pass()
            for name, p in self._trained(gradients, skip_frozen=True).items():
                p -= rate * gradients[name]
            self._forget()

    @final
    def apply_updates(self, updates: Mapping[str, Array]) -> None:
        """Add updates to the named parameters in place, either all or none; consumes the pass and its gradients."""
        mapping("updates", updates)
        checked = {name: real_array(name, update) for name, update in updates.items()}
        for name, p in self._trained(checked).items():
            p += checked[name]
        self._forget()

    @property
    def gradients(self) -> Mapping[str, Array]:
        """The gradients from the last `backward`, by name; empty before it and after a step."""
        return MappingProxyType({} if self._pending is None else self._pending[0])

    def _pending_pass(self) -> tuple[Gradients, Pass | None]:
        """The pending gradients and their pass; see `lora_np.base.pending`."""
        if self._pending is not None:
            self._pending[1].check(self.layer_name, "a step")
            return self._pending
        if self.supports_training:
            raise InvalidOperationError(f"{self.layer_name}: a step needs gradients; call backward first")
        return {}, None

    def clear_gradients(self) -> None:
        """Discard the pending gradients."""
        self._pending = None

    def reset_state(self) -> None:
        """Discard the state that `forward` and `backward` store, in this layer and in all layers inside."""
        for layer in self.walk().values():
            layer._forget()

    def _forget(self) -> None:
        # After a step, the pass no longer matches the parameters, and its arrays take up most of the memory.
        self._pass = None
        self.clear_gradients()

    def __getstate__(self) -> dict[str, Any]:
        # A pending pass belongs to the layer that ran it: copies and pickles start without one.
        return self.__dict__ | {"_pass": None, "_pending": None}

    if TYPE_CHECKING:

        def walk(self, prefix: str = "") -> dict[str, Layer]: ...  # noqa: D102
