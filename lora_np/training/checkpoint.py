"""Checkpoints: everything that the next step depends on, in one npz file without pickle."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from typing import Any

import numpy as np

from .. import _archive
from .._typing import Array, Generator
from .._validation import file_path, finite_float, same_shape
from ..base import Layer, parameter_of
from ..errors import ArgumentError, FormatError
from ..functions.losses import Loss
from .history import History
from .moment import Moment
from .optimizers import Optimizer
from .schedules import Schedule
from .sorted_start import StepRanks
from .step import Descent


@dataclass
class State:
    """The state of a training run between two steps, apart from the model and the optimizer."""

    random: Generator
    """For sample orders and ranks."""
    epoch_random: Mapping[str, Any] = field(default_factory=dict)
    """The state of `random` at the start of this epoch, from which its sample orders can be drawn again."""
    epoch_total: float = 0.0
    """The loss summed over the rows of this epoch so far."""
    history: History = field(default_factory=History)
    best: Mapping[str, Array] = field(default_factory=dict)
    """The parameters of the epoch with the lowest validation loss, if they are kept."""

    @property
    def steps(self) -> int:
        """The number of steps done."""
        return len(self.history.step_losses)

    def begin_epoch(self) -> None:
        """Note where an epoch starts, before its sample orders are drawn."""
        self.epoch_random, self.epoch_total = self.random.bit_generator.state, 0.0

    @contextmanager
    def at_start_of_epoch(self) -> Iterator[None]:
        """Context manager: `random` as it was at the start of this epoch, to draw its sample orders again."""
        bits = self.random.bit_generator
        current, bits.state = bits.state, self.epoch_random
        yield
        bits.state = current


def checked_path(checkpoint: Any, resume: bool) -> str | None:
    """The path of a checkpoint, which can be written; None without one, in which case there is nothing to resume."""
    if checkpoint is None and not resume:
        return None
    path = file_path("checkpoint", checkpoint)
    _archive.check_writable(path)
    return path


def write(path: str | os.PathLike[str], plan: Mapping[str, Any], state: State, descent: Descent) -> None:
    """Write a checkpoint; an earlier one is replaced only when the new one is complete.

    Parameters
    ----------
    path : path
    plan : mapping
        What must not change before training resumes; JSON-serialisable.
    state : State
    descent : Descent
    """
    moment, history = Moment.of(descent.layer), state.history
    header = {
        "format": "lora_np",
        "version": 1,
        "training": {
            "plan": plan,
            "settings": moment.settings,
            "learning_rate": descent.optimizer.learning_rate,
            "epoch_total": state.epoch_total,
            "epoch_random": _plain(state.epoch_random),
            "random": _plain(state.random.bit_generator.state),
        },
    }
    arrays = {
        "parameters": moment.parameters,
        "history/step_losses": np.array(history.step_losses, float),
        "history/epoch_losses": np.array(history.epoch_losses, float),
        "history/validation_losses": np.array(history.validation_losses, float),
        "history/ranks": _table(history.ranks),
        **_under("best/", state.best),
        **_under("before/", descent.before),
        **_under("optimizer/", descent.optimizer.get_state()),
    }
    _archive.write(path, header, arrays)


def read(path: str | os.PathLike[str], plan: Mapping[str, Any], state: State, descent: Descent) -> None:
    """Restore a training run from a checkpoint, completely or not at all.

    Raises
    ------
    FormatError
        If the file is damaged or is not a checkpoint.
    ArgumentError
        If it belongs to a different training run; the message lists the differences.
    """
    header, arrays = _archive.read(path)
    label = os.fspath(path)
    try:
        training, theirs = header["training"], header["training"]["plan"]
        differing = [name for name in plan if theirs.get(name) != plan[name]]
        moment = Moment(arrays["parameters"], training["settings"])
        numbers = {name: finite_float(name, training[name]) for name in ("learning_rate", "epoch_total")}
        randoms = [training["epoch_random"], training["random"]]
        history = _history(arrays)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"{label} is not a training checkpoint: {error!r}") from error
    if differing:
        differences = "; ".join(f"{name} is {theirs.get(name)!r} in the file, {plan[name]!r} here" for name in differing)
        raise ArgumentError(f"{label} belongs to a different training run: {differences}")
    layer, before, best = descent.layer, _below("before/", arrays), _below("best/", arrays)
    optimizer, bits = copy.deepcopy(descent.optimizer), copy.deepcopy(state.random.bit_generator)
    kept = Moment.of(layer)
    try:
        for random in randoms:
            bits.state = random
        states = _below("optimizer/", arrays)
        optimizer.set_state(states)
        optimizer.learning_rate = numbers["learning_rate"]
        for name, array in [*before.items(), *best.items()]:
            _check_shape(layer, name, array)
        for key, array in states.items():
            _check_shape(layer, key.rpartition(":")[0], array, may_broadcast=True)
        moment.set(layer)
    except Exception as error:  # settings, states of generators and of optimizers raise almost anything
        kept.set(layer)
        raise FormatError(f"{label} is damaged: {error!r}") from error
    # Nothing below can fail.
    state.random.bit_generator.state = randoms[1]
    descent.optimizer.set_state(states)
    descent.optimizer.learning_rate = numbers["learning_rate"]
    descent.before = before
    state.epoch_random, state.epoch_total, state.history, state.best = randoms[0], numbers["epoch_total"], history, best


def _history(arrays: Mapping[str, Array]) -> History:
    """The losses and ranks so far, with one entry for each step."""
    names = ("step_losses", "epoch_losses", "validation_losses")
    losses, ranks = {name: arrays[f"history/{name}"] for name in names}, arrays["history/ranks"]
    if {array.ndim for array in losses.values()} != {1} or ranks.ndim != 2 or len(ranks) != len(losses["step_losses"]):
        raise ValueError("the history has arrays of the wrong shapes")
    lists = {name: array.tolist() for name, array in losses.items()}
    return History(ranks=[tuple(filter(None, row)) for row in ranks.tolist()], **lists)


def _table(ranks: Sequence[tuple[int, ...]]) -> Array:
    """The ranks of each step as a matrix; shorter rows, of steps with a rank per row, end with zeros."""
    return np.array(list(zip_longest(*ranks, fillvalue=0)), int).reshape(-1, len(ranks)).T


def _check_shape(layer: Layer, name: str, array: Array, *, may_broadcast: bool = False) -> None:
    """Reject an array that belongs to no parameter, or does not have its shape, or an axis of length 1 instead."""
    parameter = parameter_of(layer, name)
    if parameter is None:
        raise ArgumentError(f"{name!r} is not a trainable parameter")
    if may_broadcast and array.ndim == parameter.ndim:
        array = np.broadcast_to(array, parameter.shape)
    same_shape(name, array, parameter.shape)


def plan_of(descent: Descent, ranks: StepRanks, rates: Mapping[str, Any] | None, random: Generator) -> dict[str, Any]:
    """What must be equal for a checkpoint to fit, as far as the steps are concerned."""
    return {
        "loss": _settings(descent.loss),
        "optimizer": _settings(descent.optimizer),
        "schedule": rates,
        "groups": descent.groups.rates or None,
        "decay": descent.groups.decays or None,
        "clip_norm": descent.clip_norm,
        "rank_schedule": name_of(ranks.schedule),
        "sorted_start": ranks.start or None,
        "rng": type(random.bit_generator).__name__,
    }


def rates_of(schedule: Schedule | None, optimizer: Optimizer, steps: int) -> dict[str, Any] | None:
    """What the learning rates of a run with a schedule depend on."""
    if schedule is None:
        return None
    return {"factor": name_of(schedule), "learning_rate": optimizer.learning_rate, "steps": steps}


def _settings(rule: Optimizer | Loss) -> dict[str, Any]:
    """The type and the settings of an optimizer, without the learning rate, which may change; or of a loss."""
    varying = ("_learning_rate", "_states")
    settings = {name: name_of(value) for name, value in vars(rule).items() if name not in varying}
    return {"type": name_of(type(rule)), **settings}


def name_of(value: Any) -> str:
    """A name that is the same in every process: where a function or a class is defined; of other values, their `repr`."""
    if isinstance(value, partial):
        return f"partial({name_of(value.func)}, {', '.join(map(name_of, [*value.args, *value.keywords.items()]))})"
    if not hasattr(value, "__qualname__"):
        has_address = getattr(type(value), "__repr__", None) is object.__repr__
        return name_of(type(value)) if has_address else repr(value)
    return f"{value.__module__}.{value.__qualname__}"


def _plain(state: Any) -> Any:
    """The state of a bit generator with lists for arrays, as JSON needs it."""
    if isinstance(state, Mapping):
        return {name: _plain(value) for name, value in state.items()}
    return state.tolist() if isinstance(state, np.ndarray) else state


def _under(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {f"{prefix}{name}": array for name, array in arrays.items()}


def _below(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
