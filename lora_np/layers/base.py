"""`Layer`: a pure pair `apply` / `vjp`, and the only code that remembers anything."""

from __future__ import annotations

import copy
import itertools
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Literal, NamedTuple, Self, TypeAlias, final, overload

import numpy as np

from .. import _archive
from .._typing import Array, Cache, Gradients, Parts, Routing, Tasks
from .._validation import finite_float, float_dtype, last_axis, one_of, positive_int, real_array, same_shape
from ..errors import ArgumentError, InvalidOperationError, NotSupportedError
from . import diagnostics, serialization, weight_loading
from .weight_loading import WeightLoadResult, WeightLoadValidation

if TYPE_CHECKING:
    from ..graph import ComputationNode

Memory: TypeAlias = Literal["lean", "fast", "max"]

_numbers = itertools.count(1)


class _Pass(NamedTuple):
    """What `forward` remembers."""

    cache: Cache
    output_shape: tuple[int, ...]
    tasks: Tasks | None
    branches: Routing


class _Pending(NamedTuple):
    """What `backward` remembers."""

    gradients: Gradients
    cache: Cache
    tasks: Tasks | None
    branches: Routing


class Layer(ABC):
    """A differentiable map of rows, ``(..., input_size) -> (..., output_size)``, with named parameters.

    A concrete layer writes the pair `apply` / `vjp`, which is pure: it reads the parameters, writes nothing, checks
    nothing and casts nothing. Everything else is derived from that pair and from `named_parameters`, here, once.

    Parameters
    ----------
    input_size, output_size : int
        Sizes of the last axis before and after.
    dtype : {float64, float32}
        Of parameters and outputs; inputs are cast to it.
    """

    parameter_names: ClassVar[tuple[str, ...]] = ()
    """Attributes that hold this layer's own parameters, in flat-vector order."""

    frozen_names: ClassVar[tuple[str, ...]] = ()
    """Attributes that hold arrays of its own that never train, yet belong in a file."""

    settings: ClassVar[tuple[str, ...]] = ()
    """Attributes, other than arrays, that may change after construction and belong in a file."""

    frozen_children: frozenset[str] = frozenset()
    """Names of children whose parameters do not train; the gradient of the input still flows through them."""

    _pass: _Pass | None
    _pending: _Pending | None

    def __init__(self, input_size: int, output_size: int, dtype: Any = np.float64) -> None:
        self.input_size = positive_int("input_size", input_size)
        self.output_size = positive_int("output_size", output_size)
        self.dtype = float_dtype(dtype)
        self.layer_name = f"{type(self).__name__}_{next(_numbers)}"
        self._is_training = True
        self._forget()

    # ---------------------------------------------------------------- what a concrete layer writes

    @abstractmethod
    def apply(self, x: Array, *, training: bool = False) -> tuple[Array, Cache]:
        """The map itself, pure: the output, and what `vjp` needs.

        Parameters
        ----------
        x : array, shape (..., input_size)
        training : bool
            Whether this pass trains; without it nothing is random.

        Returns
        -------
        y : array, shape (..., output_size)
        cache : tuple
        """

    @abstractmethod
    def vjp(
        self, dy: Array, cache: Cache, *, parameters: bool = True, inputs: bool = True
    ) -> tuple[Array | None, Gradients]:
        """The vector-Jacobian product of `apply`, pure: ``Jᵀ dy`` for the input and for every parameter.

        Parameters
        ----------
        dy : array, shape (..., output_size)
        cache : tuple
            From the `apply` to differentiate.
        parameters, inputs : bool
            What is wanted; the rest is not computed.

        Returns
        -------
        dx : array, shape (..., input_size), or None
        gradients : dict of arrays, by the names of `named_parameters`
            Sums over rows. A name that is left out got no gradient: it is frozen, or was not used.
        """

    @abstractmethod
    def estimate_flops(self) -> int:
        """Floating-point operations of one row's forward pass, a multiply-add counting as two."""

    def children(self) -> Mapping[str, Layer]:
        """The layers inside this one, by name."""
        return {}

    def active_parts(self, cache: Cache) -> Parts:
        """The part of each array that the pass of this cache trains, where it is not the whole array."""
        return {}

    def routing(self, tasks: Tasks | None = None) -> Routing:
        """The task branches that a pass goes through, or the name of one that does not exist.

        `backward` and `update_parameters` refuse to run when it differs from that of the forward pass.
        """
        branches: Routing = ()
        for child in self.children().values():
            branches += child.routing(tasks)
        return branches

    def apply_routed(self, x: Array, tasks: Tasks, *, training: bool = False) -> tuple[Array, Cache]:
        """`apply` with a task for each row; a layer without tasks ignores them. `vjp` takes its cache as any other."""
        return self.apply(x, training=training)

    def compute_auxiliary_loss(self) -> Any:
        """The penalties of the trainable weights, to be added to the loss; their gradients are already in `vjp`."""
        return sum(
            child.compute_auxiliary_loss() for name, child in self.children().items() if name not in self.frozen_children
        )

    def get_activation_types(self) -> tuple[str, ...]:
        """The names of the activations inside, in order."""
        return tuple(name for child in self.children().values() for name in child.get_activation_types())

    def details(self) -> dict[str, str]:
        """What sets this layer apart, for `get_diagnostics` and `repr`: strings by dotted name."""
        return {}

    def config(self) -> dict[str, Any]:
        """The arguments with which `from_config` builds a layer of the same structure; the values may be layers."""
        raise NotSupportedError(f"{type(self).__name__} cannot be saved: it has no config() that says how to rebuild it")

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """A new layer of this structure."""
        return cls(**config)

    # ---------------------------------------------------------------- passes: the pure pair with a memory

    def __call__(self, input: Any) -> Array:
        """`forward`."""
        return self.forward(input)

    def predict(self, input: Any) -> Array:
        """The output for inference, whatever the mode: nothing random, nothing remembered, safe from many threads.

        Parameters
        ----------
        input : array, shape (..., input_size)

        Returns
        -------
        array, shape (..., output_size)

        Raises
        ------
        ArgumentError
            Another last axis, or not real numbers.
        """
        x = self._checked_input(input)
        return _owned(self._output(x), x)

    def forward(self, input: Any) -> Array:
        """The output in the layer's mode; remembers what `backward` needs. The caller may reuse the input's buffer.

        Parameters
        ----------
        input : array, shape (..., input_size)

        Returns
        -------
        array, shape (..., output_size)

        Raises
        ------
        ArgumentError
            Another last axis, or not real numbers.
        """
        return self._forward(self._checked_input(input, copy=True), self.apply, None)

    @overload
    def backward(self, output_gradient: Any, *, need_input_grad: Literal[True] = True) -> Array: ...

    @overload
    def backward(self, output_gradient: Any, *, need_input_grad: bool) -> Array | None: ...

    def backward(self, output_gradient: Any, *, need_input_grad: bool = True) -> Array | None:
        """The gradient of the input; remembers those of the parameters, in place of earlier ones.

        Parameters
        ----------
        output_gradient : array, the shape of the last output
            dL/dy.
        need_input_grad : bool, default True
            False saves the product that only the input's gradient needs, about half of a step with a frozen base.

        Returns
        -------
        array, the shape of the last input, or None
            dL/dx, where it is needed.

        Raises
        ------
        InvalidOperationError
            There was no `forward` since the last step, or the task has changed since.
        ArgumentError
            Another shape.
        """
        if self._pass is None:
            raise InvalidOperationError(f"{self.layer_name}: backward needs a forward pass first; a step uses it up")
        cache, output_shape, tasks, branches = self._pass
        self._check_routing("backward", tasks, branches)
        dy = real_array("output_gradient", output_gradient, self.dtype)
        same_shape("output_gradient", dy, output_shape)
        dx, gradients = self.vjp(dy, cache, inputs=need_input_grad)
        self._pending = _Pending(gradients, cache, tasks, branches)
        return None if dx is None else _owned(dx, dy)

    def forward_routed(self, input: Any, tasks: Iterable[str | None]) -> Array:
        """`forward` of a mixed batch: each row goes through the branch of its own task, at every `MultiLoRAAdapter`.

        Parameters
        ----------
        input : array, shape (rows, ..., input_size)
        tasks : sequence of str or None, length rows
            The task of each entry of the first axis; None is the base alone. The current task plays no part.

        Returns
        -------
        array, shape (rows, ..., output_size)
            In the order of `input`. The `backward` that follows gives every task present its own gradients.

        Raises
        ------
        ArgumentError
            Another length, an unknown task, or no layer inside has tasks; nothing is changed.
        """
        x = self._checked_rows(input, copy=True)
        tasks = self.check_tasks(tasks, len(x))
        return self._forward(x, partial(self.apply_routed, tasks=tasks), tasks)

    def predict_routed(self, input: Any, tasks: Iterable[str | None]) -> Array:
        """`predict` of a mixed batch; see `forward_routed`."""
        x = self._checked_rows(input)
        tasks = self.check_tasks(tasks, len(x))
        return _owned(self._output(x, tasks), x)

    def check_tasks(self, tasks: Iterable[str | None], rows: int) -> Tasks:
        """The tasks of a mixed batch in the form that `apply_routed` takes; an ArgumentError where they do not fit.

        Parameters
        ----------
        tasks : sequence of str or None
        rows : int
            How many there must be.
        """
        if isinstance(tasks, str) or not isinstance(tasks, Iterable):
            raise ArgumentError(f"tasks must be a sequence with a name or None for each row, got {tasks!r}")
        names = tuple(tasks)
        try:
            present = _present(names)
        except TypeError:  # one of them cannot be the key of a dict, let alone be a name
            present = names
        for name in present:
            if not (name is None or isinstance(name, str)):
                raise ArgumentError(f"tasks must hold names or None, got {name!r}")
        if len(names) != rows:
            raise ArgumentError(f"tasks must have one entry for each of {rows} rows of input, got {len(names)}")
        branches = self.routing(present)
        unknown = [name for name in branches if isinstance(name, str)]
        if unknown:
            raise ArgumentError(f"tasks must be known to {self.layer_name}, got {unknown[0]!r}")
        if not branches and any(name is not None for name in present):
            raise ArgumentError(f"tasks must be None for every row: no layer of {self.layer_name} has tasks")
        return names

    def update_parameters(self, learning_rate: Any) -> None:
        """One step of gradient descent, ``p -= learning_rate · dp``, which uses the pass and its gradients up.

        Parameters
        ----------
        learning_rate : float, or array of shape (parameter_count,)
            An array is the documented overload that replaces all parameters: see `set_parameters`.

        Raises
        ------
        InvalidOperationError
            No gradient is pending, or the task has changed since; nothing is changed.
        """
        if isinstance(learning_rate, list | tuple) or (isinstance(learning_rate, np.ndarray) and learning_rate.ndim):
            self.set_parameters(learning_rate)
        else:
            rate = finite_float("learning_rate", learning_rate)
            scale = np.array(-rate, self.dtype)  # as an array, for it is much faster to multiply by than a Python number
            for array, gradient in self._trained(self.pending_gradients()):
                array += gradient * scale
            self._forget()

    @final
    def apply_updates(self, updates: Mapping[str, Array]) -> None:
        """Add an update to each named parameter, in place, all or none; uses the pass and its gradients up.

        Raises
        ------
        ArgumentError
            A name that is not a trainable parameter, or another shape; nothing is changed.
        InvalidOperationError
            A parameter is packed; nothing is changed.
        """
        for array, update in self._trained({name: real_array(name, update) for name, update in updates.items()}):
            array += update
        self._forget()

    def pending_gradients(self) -> Mapping[str, Array]:
        """The gradients of the last `backward` that no step has used.

        Raises
        ------
        InvalidOperationError
            The layer has parameters and there is no such gradient, or the task has changed since.
        """
        if self._pending is None:
            if self.supports_training:
                raise InvalidOperationError(f"{self.layer_name}: a step needs the gradients of a backward pass first")
            return {}
        self._check_routing("a step", self._pending.tasks, self._pending.branches)
        return self.gradients

    @property
    def gradients(self) -> Mapping[str, Array]:
        """The gradients of the last `backward` by name; empty before it and after a step."""
        return MappingProxyType({} if self._pending is None else self._pending.gradients)

    @property
    def pending_parts(self) -> Parts:
        """The trained part of each pending gradient that is not trained whole."""
        return {} if self._pending is None else self.active_parts(self._pending.cache)

    def clear_gradients(self) -> None:
        """Drop the pending gradients."""
        self._pending = None

    def reset_state(self) -> None:
        """Drop what `forward` and `backward` remember, here and in every child."""
        for layer in self.walk().values():
            layer._forget()

    def close(self) -> None:
        """`reset_state`; may be called again, and the layer may be used again."""
        self.reset_state()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # ---------------------------------------------------------------- mode

    @property
    def is_training(self) -> bool:
        """Whether `forward` runs in training mode; setting it reaches every child."""
        return self._is_training

    @is_training.setter
    def is_training(self, is_training: bool) -> None:
        for layer in self.walk().values():
            layer._is_training = bool(is_training)

    def set_training_mode(self, is_training: bool) -> None:
        """Set `is_training`, here and in every child."""
        self.is_training = is_training

    def train(self, mode: bool = True) -> Self:
        """Training mode; returns the layer."""
        self.is_training = mode
        return self

    def eval(self) -> Self:
        """Evaluation mode; returns the layer."""
        return self.train(False)

    @contextmanager
    def training_mode(self, is_training: bool) -> Iterator[None]:
        """A block in this mode; afterwards every layer inside has its own mode back, after an error too."""
        kept = [(layer, layer._is_training) for layer in self.walk().values()]
        self.is_training = is_training
        try:
            yield
        finally:
            for layer, mode in kept:
                layer._is_training = mode

    # ---------------------------------------------------------------- parameters: named arrays, and the flat view

    def walk(self, prefix: str = "") -> dict[str, Layer]:
        """The layer and all layers inside it, by dotted path; its own path is the empty string."""
        layers = {prefix: self}
        for name, child in self.children().items():
            layers |= child.walk(f"{prefix}.{name}" if prefix else name)
        return layers

    def named_parameters(self, *, frozen: bool = False) -> dict[str, Array]:
        """The live arrays by dotted name, in flat-vector order.

        Parameters
        ----------
        frozen : bool
            Whether to include the arrays that do not train.
        """
        names = self.parameter_names + self.frozen_names if frozen else self.parameter_names
        arrays: dict[str, Array] = {name: getattr(self, name) for name in names}
        for child_name, child in self.children().items():
            if frozen or child_name not in self.frozen_children:
                arrays |= prefixed(child_name, child.named_parameters(frozen=frozen))
        return arrays

    def parameter(self, name: str, *, frozen: bool = False) -> Array | None:
        """One of `named_parameters`, the live array, without listing the others; None where there is none of this name."""
        owner = self._owner(name, frozen)
        return None if owner is None else getattr(*owner)

    def _owner(self, name: str, frozen: bool) -> tuple[Layer, str] | None:
        """The layer that has this parameter, and the attribute there."""
        if name in self.parameter_names or (frozen and name in self.frozen_names):
            return self, name
        children = self.children()
        child_name = name
        while child_name := child_name.rpartition(".")[0]:  # a child's name may hold dots itself, and begin another's
            child = children.get(child_name)
            if child is not None and (frozen or child_name not in self.frozen_children):
                owner = child._owner(name[len(child_name) + 1 :], frozen)
                if owner is not None:
                    return owner
        return None

    @property
    def parameter_count(self) -> int:
        """The number of trainable parameters: the length of the flat vector."""
        return sum(array.size for array in self.named_parameters().values())

    @property
    def supports_training(self) -> bool:
        """Whether there are trainable parameters."""
        trained = (child for name, child in self.children().items() if name not in self.frozen_children)
        return bool(self.parameter_names) or any(child.supports_training for child in trained)

    @property
    def is_initialized(self) -> bool:
        """Always true: sizes are known and weights are drawn at construction."""
        return True

    def get_parameters(self) -> Array:
        """A copy of all trainable parameters as one vector, row-major, in the order of `named_parameters`."""
        return self._flat(self.named_parameters().values())

    def set_parameters(self, parameters: Any) -> None:
        """Replace all trainable parameters, in place, by a vector as `get_parameters` gives it.

        Raises
        ------
        ArgumentError
            Another length, or not real numbers; nothing is changed.
        """
        vector = real_array("parameters", parameters, self.dtype, copy=True)
        arrays = self.named_parameters()
        same_shape("parameters", vector, (sum(array.size for array in arrays.values()),))
        start = 0
        values = {}
        for name, array in arrays.items():
            values[name] = vector[start : start + array.size].reshape(array.shape)
            start += array.size
        self._assign(values)

    def get_parameter_gradients(self) -> Array:
        """The pending gradients as one vector; exactly zero where there is none."""
        gradients = self.gradients
        arrays = self.named_parameters()
        return self._flat(gradients.get(name, np.zeros_like(array)) for name, array in arrays.items())

    # ---------------------------------------------------------------- speed for memory

    def pack(self, memory: Memory = "fast") -> Self:
        """Copy every weight that does not train into the form in which it is multiplied fastest; returns the layer.

        A packed array is read-only. Writing to it by `set_parameters`, `set_parameter`, `load_weights` or `deserialize`,
        and unfreezing its layer, drop the copy; so do `clone` and pickling.

        Parameters
        ----------
        memory : {"lean", "fast", "max"}, default "fast"
            ``"lean"``: no copies, as without packing. ``"fast"``: one more copy of each weight, for `forward` and
            `predict`. ``"max"``: two, for `backward` too. `estimate_memory` says what that costs.

        Notes
        -----
        What does not train are the frozen children (an adapter's base, the layers named by ``Sequential.freeze``), and
        a DenseLayer or FullyConnectedLayer that is itself asked to pack. Nothing is copied on processors for which
        that is not known to pay. A view taken earlier can still be written through, and nobody notices: do not.
        """
        memory = one_of("memory", memory, ("lean", "fast", "max"))  # type: ignore[assignment]
        for layer in self._at_rest() if self.children() else [self]:
            layer.pack_own(memory)
        return self

    def unpack(self) -> Self:
        """Drop every packed copy; the arrays can be written to again. Returns the layer."""
        for layer in self.walk().values():
            layer.unpack_own()
        return self

    def pack_own(self, memory: Memory) -> None:  # noqa: B027 - most layers have nothing to pack
        """Pack the arrays of this very layer."""

    def unpack_own(self) -> None:  # noqa: B027
        """Drop what `pack_own` made."""

    @property
    def packed_bytes(self) -> int:
        """The memory of what `pack_own` made."""
        return 0

    def _at_rest(self) -> list[Layer]:
        """The layers inside this one that do not train."""
        found: list[Layer] = []
        for name, child in self.children().items():
            found += child.walk().values() if name in self.frozen_children else child._at_rest()
        return found

    def estimate_memory(self) -> dict[str, int]:
        """Bytes of the arrays by kind: ``"trainable"``, ``"frozen"`` and ``"packed"``, the copies that `pack` made."""
        return diagnostics.memory(self)

    # ---------------------------------------------------------------- computation graph

    @property
    def supports_jit_compilation(self) -> bool:
        """Whether `export_computation_graph` can record this layer: true for every layer of the package."""
        from ..graph import recording  # here, so that `import lora_np` need not wait for it

        return recording.is_recordable(self)

    def export_computation_graph(self, input_nodes: list[ComputationNode]) -> ComputationNode:
        """The map of `predict` as a graph, with a copy of every parameter under its name.

        Parameters
        ----------
        input_nodes : list of ComputationNode
            An empty list takes the new input node, which all branches share; where it holds a node, such as the output of
            another graph, the layer's graph goes on from there.

        Returns
        -------
        ComputationNode
            The output.

        Raises
        ------
        ArgumentError
            Not such a list, or the node in it has another size or dtype than the layer's input.
        NotSupportedError
            The `apply` of a layer inside does what cannot be recorded; the message names the layer and says why.
        """
        from ..graph import recording

        return recording.record(self, input_nodes)

    # ---------------------------------------------------------------- weights by name, description, files

    def get_weights(self) -> Array | None:
        """A copy of the weight matrix; None where there is none."""
        return self.try_get_parameter("weight")

    def get_biases(self) -> Array | None:
        """A copy of the bias vector; None where there is none."""
        return self.try_get_parameter("bias")

    def get_parameter_names(self) -> tuple[str, ...]:
        """The names of all arrays, frozen ones included."""
        return tuple(self.named_parameters(frozen=True))

    @property
    def named_parameter_count(self) -> int:
        """The number of all arrays, frozen ones included."""
        return len(self.get_parameter_names())

    def try_get_parameter(self, name: str) -> Array | None:
        """A copy of an array; None where there is none of this name."""
        array = self.parameter(name, frozen=True)
        return None if array is None else array.copy()

    def get_parameter_shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of an array; None where there is none of this name."""
        array = self.parameter(name, frozen=True)
        return None if array is None else array.shape

    def set_parameter(self, name: str, value: Any) -> bool:
        """Replace one array, frozen or not, in place.

        Returns
        -------
        bool
            False where there is none of this name.

        Raises
        ------
        ArgumentError
            Another shape, or not real numbers; nothing is changed.
        """
        if self.parameter(name, frozen=True) is None:
            return False
        self._assign({name: real_array(name, value, self.dtype)})
        return True

    def validate_weights(
        self, names: Iterable[str] | Mapping[str, Any], mapping: Callable[[str], str | None] | None = None
    ) -> WeightLoadValidation:
        """Say what `load_weights` would find.

        Parameters
        ----------
        names : names of weights, or arrays by name
            With arrays their shapes are compared too.
        mapping : callable, optional
            From a weight's name to that of a parameter here, or to None for a weight to leave out.
        """
        return weight_loading.validate(self.named_parameters(frozen=True), names, mapping)

    def load_weights(
        self,
        weights: Mapping[str, Any],
        mapping: Callable[[str], str | None] | None = None,
        strict: bool = False,
    ) -> WeightLoadResult:
        """Replace arrays by name, frozen ones too.

        Parameters
        ----------
        weights : arrays by name
        mapping : callable, optional
            From a weight's name to that of a parameter here, or to None for a weight to leave out.
        strict : bool
            Whether to load nothing at all unless every weight fits and every parameter gets one.
        """
        values, result = weight_loading.plan(self.named_parameters(frozen=True), weights, mapping, strict)
        self._assign(values)
        return result

    def get_input_shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return (self.input_size,)

    def get_output_shape(self) -> tuple[int, ...]:
        """The shape of one sample's output."""
        return (self.output_size,)

    def estimate_activation_memory(self) -> int:
        """Bytes that one row keeps between `forward` and `backward`, its output included."""
        return diagnostics.activation_memory(self)

    def get_diagnostics(self) -> dict[str, str]:
        """A description of the layer and its state, as words and numbers in strings."""
        return diagnostics.describe(self)

    def clone(self) -> Self:
        """A deep copy without pending gradients; it and every layer inside it have names of their own."""
        twin = copy.deepcopy(self)
        for layer in twin.walk().values():
            layer.layer_name = f"{type(layer).__name__}_{next(_numbers)}"
        return twin

    def serialize(self, file: str | os.PathLike[str] | BinaryIO) -> None:
        """Write every array (a frozen base too), the structure and the settings to an npz file.

        Parameters
        ----------
        file : path or binary stream
            A path is replaced only when the new file is complete.

        Raises
        ------
        NotSupportedError
            A layer inside cannot be saved; nothing is written.
        """
        _archive.write(file, serialization.header(self), self.named_parameters(frozen=True))

    def deserialize(self, file: str | os.PathLike[str] | BinaryIO) -> None:
        """Read arrays and settings of a layer of the same structure; `lora_np.load_layer` builds the layer itself.

        Raises
        ------
        FormatError
            The file is damaged, or it holds another structure: the message names the first difference. Nothing is
            changed.
        """
        header, arrays = _archive.read(file)
        serialization.check_structure(self, header)
        serialization.restore(self, header, arrays)

    def __repr__(self) -> str:
        return diagnostics.summary(self)

    def __getstate__(self) -> dict[str, Any]:
        # A pending pass belongs to the layer that ran it: copies and pickles start without one.
        return self.__dict__ | {"_pass": None, "_pending": None}

    # ---------------------------------------------------------------- private

    def _forget(self) -> None:
        # After a step: what the pass computed is not true of the new parameters, and its arrays are most of the memory.
        self._pass = None
        self.clear_gradients()

    def _checked_input(self, input: Any, *, copy: bool = False) -> Array:
        # A copy keeps the cache safe from a caller who reuses the buffer.
        x = real_array("input", input, self.dtype, copy=copy)
        last_axis("input", x, self.input_size)
        return x

    def _checked_rows(self, input: Any, *, copy: bool = False) -> Array:
        x = self._checked_input(input, copy=copy)
        if x.ndim < 2:
            raise ArgumentError(f"input must have shape (rows, ..., {self.input_size}), got {x.shape}")
        return x

    def _forward(self, x: Array, apply: Callable[..., tuple[Array, Cache]], tasks: Tasks | None) -> Array:
        y, cache = apply(x, training=self.is_training)
        present = None if tasks is None else _present(tasks)
        self._pass = _Pass(cache, y.shape, present, self.routing(present))
        return _owned(y, x)

    def _output(self, x: Array, tasks: Tasks | None = None) -> Array:
        """What `apply`, or `apply_routed`, gives for inference, without a cache."""
        y, _ = self.apply(x) if tasks is None else self.apply_routed(x, tasks)
        return y

    def _check_routing(self, what: str, tasks: Tasks | None, branches: Routing) -> None:
        if branches != self.routing(tasks):
            raise InvalidOperationError(
                f"{self.layer_name}: the task has changed since the forward pass, so {what} would mix tasks; "
                "select the task before forward, and keep it until the step is done"
            )

    def _flat(self, arrays: Any) -> Array:
        return np.concatenate([np.empty(0, self.dtype), *(array.ravel() for array in arrays)])

    def _place(self, name: str, value: Array, *, frozen: bool) -> tuple[Layer, str, Array]:
        """The layer that has a parameter, the attribute there, and the array, which the value must fit."""
        owner = self._owner(name, frozen)
        if owner is None:
            raise ArgumentError(f"{self.layer_name} has no such trainable parameter: {name!r}")
        layer, attribute = owner
        parameter = getattr(layer, attribute)
        same_shape(name, value, parameter.shape)
        return layer, attribute, parameter

    def _trained(self, values: Mapping[str, Array]) -> list[tuple[Array, Array]]:
        """The parameter that each value is for, which may be written to, and the value."""
        pairs = []
        for name, value in values.items():
            layer, attribute, parameter = self._place(name, value, frozen=False)
            if not parameter.flags.writeable:
                raise InvalidOperationError(
                    f"{self.layer_name}: {attribute} of {layer.layer_name} is packed, so it cannot train; unpack() first"
                )
            pairs.append((parameter, value))
        return pairs

    def _assign(self, values: Mapping[str, Array]) -> None:
        places = [(*self._place(name, value, frozen=True)[:2], value) for name, value in values.items()]
        for layer, attribute, value in places:
            layer.unpack_own()
            getattr(layer, attribute)[...] = value


def prefixed(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """A child's values by name, under the child's own name."""
    return {f"{prefix}.{name}": value for name, value in values.items()}


def _present(tasks: Tasks) -> Tasks:
    """Each task once, in order: where a mixed batch goes does not depend on the number of its rows."""
    return tuple(dict.fromkeys(tasks))


def _owned(result: Array, argument: Array) -> Array:
    """The result, which must not be a view of an argument that somebody else may write to."""
    if result.base is None and result is not argument:
        return result  # it has memory of its own
    return result.copy() if np.may_share_memory(result, argument) else result
