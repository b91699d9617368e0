"""`MultiLoRAAdapter`: one shared base and many named tasks, each with its own low-rank branch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from .._typing import RNG
from .._validation import generator, rank_within
from ..base import FixedAttributes, Layer
from ..errors import InvalidOperationError, NotSupportedError
from ..kernels import FactorMemory
from ..layers.dense import AffineLayer
from ..layers.lora import LoRALayer
from ..run import Run, Tasks
from .additive import Selection
from .mixed import MixedBranch
from .task_slices import Slice, by_rank
from .task_storage import TaskStorage


@final
class MultiLoRAAdapter(FixedAttributes, TaskStorage):
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
    active_ranks : sequence of int, optional
        The ranks of the first task, if it has some; see `add_task`.
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

    A task with active ranks uses the first r components of A_t and B_t, as `DyLoRAAdapter` does. A training pass makes one
    draw for the whole model, from which each such task derives its r; any other pass uses the deployment ranks. The
    argument ``rank`` of a pass, a number or one for each row, must be an active rank of the task of each row. Tasks without
    active ranks, and rows without a task, ignore it: they use all components, or none.

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

    def __init__(
        self,
        base_layer: Layer,
        default_task_name: str,
        default_rank: int,
        alpha: float = -1.0,
        freeze_base_layer: bool = True,
        *,
        active_ranks: Sequence[int] | None = None,
        dropout: float = 0.0,
        rng: RNG = None,
    ) -> None:
        super().__init__(base_layer, freeze_base_layer)
        self._rng = generator(rng)
        self._tasks, self._task_ranks = {}, {}
        self._memory = FactorMemory(self.input_size, self.output_size, self.dtype)
        self._check_new("default_task_name", default_task_name)
        rank_within(default_rank, self.input_size, self.output_size, "default_rank")
        self.add_task(default_task_name, default_rank, alpha, active_ranks, dropout=dropout)
        self._current_task = default_task_name

    def select(self, run: Run) -> Selection:
        """The branch of the task that all rows have, by default the current one; or the branches of all tasks present."""
        if run.tasks is None:
            return self._selection(*self._current(), run)
        first, *others = run.tasks.names or (None,)
        try:
            if first is not None and not others:
                return self._selection(first, self._tasks[first], run)
            branches = [None if name is None else self._tasks[name] for name in run.tasks.names]
        except KeyError as error:  # in another thread, after the tasks of the pass were checked
            raise InvalidOperationError(f"{self.layer_name}: the task {error} was removed during the pass") from None
        tasks, slices = self._slices(run.tasks, branches, run)
        return Selection("tasks", MixedBranch(tasks, slices, self._memory, self._has_dropout))

    def _slices(
        self, tasks: Tasks, branches: Sequence[LoRALayer | None], run: Run
    ) -> tuple[Tasks, Sequence[LoRALayer | Slice | None]]:
        """The tasks and the branches of a mixed batch, divided by rank."""
        if not self._task_ranks:
            return tasks, branches
        return by_rank(tasks, branches, [None if name is None else self._task_ranks.get(name) for name in tasks.names], run)

    def _selection(self, name: str, branch: LoRALayer, run: Run) -> Selection:
        ranks = self._task_ranks.get(name)
        rank = None if ranks is None else ranks.rank_in(run)
        return Selection(f"tasks.{name}", branch, rank, 0 if ranks is None or rank is None else ranks.trained_from(rank))

    @property
    def lora_layer(self) -> LoRALayer:
        """The current task's branch."""
        return self._current()[1]

    def merge_task_to_layer(self, task_name: str) -> AffineLayer:
        """A new layer with ``W + s_t A_t B_t``, in the base's layout; a task with ranks is merged at its deployment rank.

        The base and the current task are not changed.

        Raises
        ------
        ArgumentError
            If the task is unknown.
        NotSupportedError
            If the base is not a DenseLayer or FullyConnectedLayer, or if it has an activation.
        """
        branch, base = self.get_task_adapter(task_name), self.mergeable_base()
        return base.with_matrix(base.matrix + branch.merge_weights(rank=self.task_deployment_ranks.get(task_name)))

    def compute_auxiliary_loss(self) -> Any:
        """The penalty of the base, unless it is frozen; branches have none."""
        return 0 if self.is_base_layer_frozen else self.base_layer.compute_auxiliary_loss()
