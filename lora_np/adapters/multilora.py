"""`MultiLoRAAdapter`: one shared base and many named tasks, each with its own low-rank branch."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from operator import attrgetter
from typing import Any, Self, final

from .._typing import RNG
from .._validation import generator, rank_within
from ..base import FixedAttributes, Layer
from ..errors import InvalidOperationError, NotSupportedError
from ..kernels import FactorMemory
from ..layers.dense import AffineLayer
from ..layers.lora import LoRALayer
from ..run import Run
from .additive import AdditiveAdapter, Selection
from .mixed import MixedBranch
from .task_children import TaskChildren
from .task_choice import TaskChoice


@final
class MultiLoRAAdapter(FixedAttributes, AdditiveAdapter, TaskChoice):
    """``y = base(x) + s_t (x A_t) B_t``, where t is the current task or, in a mixed batch, the task of each row.

    Parameters
    ----------
    base_layer : Layer
        The layer to adapt, shared by all tasks.
    default_task_name : str
        The first task, initially the current one; not blank.
    default_rank : int
        Its rank, in 1..min(input_size, output_size).
    alpha : float, default -1
        Its alpha. A negative value means its rank.
    freeze_base_layer : bool, default True
        Whether the base's parameters are frozen.
    dropout : float, default 0
        p of the first task, in [0, 1), for the input of its branch in training passes; see `LoRALayer`.
    rng : seed or numpy.random.Generator, optional
        For the initial A of every task, and for the masks of dropout.

    Raises
    ------
    ArgumentNullError
        If `base_layer` or `default_task_name` is None.
    ArgumentError
        If another argument violates the constraints above.

    Notes
    -----
    A pass computes gradients for the tasks that took part in it and for no others: an update leaves the arrays of every
    other task bit-identical. With X_t and G_t the rows of X and of G = dL/dY that belong to task t::

        H_t = s_t X_t A_t,  Y_t = base(X_t) + H_t B_t
        dB_t = H_tᵀ G_t,  dH_t = s_t G_t B_tᵀ,  dA_t = X_tᵀ dH_t,  dX_t = dX_base + dH_t A_tᵀ

    If all rows have one task, its `LoRALayer` computes this; otherwise `MixedBranch` does. The flat vector holds the base,
    unless it is frozen, then each task in the order in which the tasks were added.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import DenseLayer, MultiLoRAAdapter
    >>> adapter = MultiLoRAAdapter(DenseLayer(4, 3, rng=0), "sentiment", 2, rng=1)
    >>> adapter.add_task("topics", rank=1)
    >>> adapter.current_task = "topics"
    >>> adapter.forward(np.ones((3, 4)), tasks=["topics", None, "sentiment"]).shape
    (3, 3)
    """

    merge_error = NotSupportedError
    settings = ("current_task",)

    def __init__(
        self,
        base_layer: Layer,
        default_task_name: str,
        default_rank: int,
        alpha: float = -1.0,
        freeze_base_layer: bool = True,
        *,
        dropout: float = 0.0,
        rng: RNG = None,
    ) -> None:
        super().__init__(base_layer, freeze_base_layer)
        self._rng = generator(rng)
        self._tasks: dict[str, LoRALayer] = {}
        self._memory = FactorMemory(self.input_size, self.output_size, self.dtype)
        rank_within(default_rank, self.input_size, self.output_size, "default_rank")
        self._add("default_task_name", default_task_name, default_rank, alpha, dropout)
        self._current_task = default_task_name

    @classmethod
    def around_tasks(cls, base_layer: Layer, branches: Mapping[str, LoRALayer], freeze_base_layer: bool = True) -> Self:
        """An adapter with given branches by task, the first of which is current; see `LoRAAdapterBase.around`."""
        adapter = cls.__new__(cls)
        AdditiveAdapter.__init__(adapter, base_layer, freeze_base_layer)
        adapter._rng, adapter._tasks = generator(None), {}
        adapter._memory = FactorMemory(adapter.input_size, adapter.output_size, adapter.dtype)
        for name in branches:
            adapter._check_new("branches", name)
        adapter._keep({name: adapter.fitted(branch) for name, branch in branches.items()})
        adapter._current_task = next(iter(branches))
        return adapter

    def select(self, run: Run) -> Selection:
        """The branch of the task that all rows have, by default the current one; or the branches of all tasks present."""
        if run.tasks is None:
            name, branch = self._current()
            return Selection(f"tasks.{name}", branch)
        first, *others = run.tasks.names or (None,)
        try:
            if first is not None and not others:
                return Selection(f"tasks.{first}", self._tasks[first])
            branches = [None if name is None else self._tasks[name] for name in run.tasks.names]
        except KeyError as error:  # in another thread, after the tasks of the pass were checked
            raise InvalidOperationError(f"{self.layer_name}: the task {error} was removed during the pass") from None
        return Selection("tasks", MixedBranch(run.tasks, branches, self._memory, self._has_dropout))

    @property
    def lora_layer(self) -> LoRALayer:
        """The current task's branch."""
        return self._current()[1]

    def merge_task_to_layer(self, task_name: str) -> AffineLayer:
        """A new layer with ``W + s_t A_t B_t``, in the base's layout; the base and the current task are untouched.

        Raises
        ------
        ArgumentError
            If the task is unknown.
        NotSupportedError
            If the base is not a DenseLayer or FullyConnectedLayer, or if it has an activation.
        """
        branch, base = self.get_task_adapter(task_name), self.mergeable_base()
        return base.with_matrix(base.matrix + branch.merge_weights())

    def children(self) -> Mapping[str, Layer]:
        """The base layer and every task's branch: a live, read-only view."""
        return TaskChildren(self.base_layer, self._tasks)

    def _listening_children(self) -> Mapping[str, Layer]:
        """The base layer, and the first branch with dropout: one seed is enough for all."""
        children: dict[str, Layer] = {"base": self.base_layer}
        for name, branch in self._tasks.copy().items() if self._has_dropout else ():
            if branch.dropout:
                return children | {f"tasks.{name}": branch}
        return children

    def _owner(self, name: str, frozen: bool) -> tuple[Any, str] | None:
        """As in any container, but at once for the arrays of tasks, which a step looks up by the hundred."""
        kind, _, path = name.partition(".")
        if kind != "tasks":
            return super()._owner(name, frozen)
        task, _, attribute = path.rpartition(".")
        branch = self._tasks.get(task)
        return None if branch is None else branch._owner(attribute, frozen)

    def _count(self, *, frozen: bool = False) -> int:
        """Without listing the arrays, of which there may be many."""
        base = 0 if self.is_base_layer_frozen and not frozen else self.base_layer._count(frozen=frozen)
        ranks = sum(map(attrgetter("rank"), self._tasks.copy().values()))
        return base + (self.input_size + self.output_size) * ranks

    def compute_auxiliary_loss(self) -> Any:
        """The penalty of the base, unless it is frozen; branches have none."""
        return 0 if self.is_base_layer_frozen else self.base_layer.compute_auxiliary_loss()

    def _details(self) -> dict[str, str]:
        return super()._details() | {
            "multilora.number_of_tasks": str(len(self._tasks)),
            "multilora.current_task": self._current_task,
            "multilora.tasks": ", ".join(self._shown_tasks()),
        }

    def _set_branches(self, branches: Mapping[str, LoRALayer]) -> None:
        self._rng = copy.deepcopy(self._rng)
        self._tasks = self._tasks.copy()
        self._keep({name.removeprefix("tasks."): branch for name, branch in branches.items()})

    def __copy__(self) -> Self:
        twin = object.__new__(type(self))
        twin.__dict__ |= super().__getstate__()  # the branches stay where they are
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_memory"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._memory = FactorMemory(self.input_size, self.output_size, self.dtype)
        self._keep(self._tasks)

    def config(self) -> dict[str, Any]:
        """The base, each task's branch, and whether the base is frozen."""
        return {
            "base_layer": self.base_layer,
            "tasks": [[name, branch] for name, branch in list(self._tasks.items())],
            "freeze_base_layer": self.is_base_layer_frozen,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """A new adapter with these tasks."""
        return cls.around_tasks(config["base_layer"], dict(config["tasks"]), config["freeze_base_layer"])
