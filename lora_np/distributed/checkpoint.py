"""Checkpoints: everything that the next step depends on, in one npz file without pickle."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import _archive
from .._typing import Array, Generator
from ..errors import ArgumentError, FormatError
from ..training.fit import History
from ..training.optimizers import Optimizer
from ..training.step import Descent
from .replicas import Moment


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

    @property
    def steps(self) -> int:
        """The number of steps done."""
        return len(self.history.step_losses)


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
        "history/ranks": np.array(history.ranks, int),
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
    try:
        training, theirs = header["training"], header["training"]["plan"]
        differing = [name for name in plan if theirs[name] != plan[name]]
        moment = Moment(arrays["parameters"], training["settings"])
        numbers = {name: float(training[name]) for name in ("learning_rate", "epoch_total")}
        ranks = [tuple(row) for row in arrays["history/ranks"].tolist()]
        history = History(arrays["history/step_losses"].tolist(), arrays["history/epoch_losses"].tolist(), ranks)
        randoms = [training["epoch_random"], training["random"]]
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{os.fspath(path)} is not a training checkpoint: {error!r}") from error
    if differing:
        differences = "; ".join(f"{name} is {theirs[name]!r} in the file, {plan[name]!r} here" for name in differing)
        raise ArgumentError(f"{os.fspath(path)} belongs to a different training run: {differences}")
    kept = Moment.of(descent.layer), state.random.bit_generator.state
    try:
        moment.set(descent.layer)
        for random in randoms:
            state.random.bit_generator.state = random
        descent.optimizer.set_state(_below("optimizer/", arrays))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        kept[0].set(descent.layer)
        state.random.bit_generator.state = kept[1]
        raise FormatError(f"{os.fspath(path)} is damaged: {error!r}") from error
    descent.optimizer.learning_rate = numbers["learning_rate"]
    descent.before = _below("before/", arrays)
    state.epoch_random, state.epoch_total, state.history = randoms[0], numbers["epoch_total"], history


def plan_of(optimizer: Optimizer) -> dict[str, Any]:
    """The type and the settings of an optimizer, without the learning rate, which may change."""
    varying = ("_learning_rate", "_states")
    settings = {name: repr(value) for name, value in vars(optimizer).items() if name not in varying}
    return {"type": type(optimizer).__name__, **settings}


def _plain(state: Any) -> Any:
    """The state of a bit generator with lists for arrays, as JSON needs it."""
    if isinstance(state, Mapping):
        return {name: _plain(value) for name, value in state.items()}
    return state.tolist() if isinstance(state, np.ndarray) else state


def _under(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {f"{prefix}{name}": array for name, array in arrays.items()}


def _below(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
