"""Bad arguments for every public callable: each call succeeds, or is refused by a clear error and changes nothing.

A call takes valid arguments, one or two of which are replaced by values of any kind. The tier of pure mathematics (`apply`,
`vjp`, ...) is left out: it performs no checks.
"""

import contextlib
import inspect
import pathlib
import random
import tempfile
import warnings
from typing import NamedTuple

import numpy as np

import lora_np
from lora_np import (
    SGD,
    AdamW,
    DenseLayer,
    DyLoRAAdapter,
    Layer,
    MeanSquaredError,
    Momentum,
    MultiLoRAAdapter,
    Optimizer,
    Sequential,
    StandardLoRAAdapter,
    errors,
    io,
    relu,
    surgery,
    testing,
    training,
)
from lora_np.distributed import fit_shards
from lora_np.distributed import predict as predict_shards
from lora_np.factors.weights import AdapterWeights
from lora_np.io.peft import load_peft, save_peft
from lora_np.io.safetensors import load_safetensors, save_safetensors
from tests.fuzz.disk import MEMORY, without_fsync
from tests.kinds import IN, KINDS, OUT, PLAIN, adapter_builder, batch, bits, randomised, snapshot

REFUSALS = (
    errors.ArgumentError,
    errors.InvalidOperationError,
    errors.NotSupportedError,
    errors.NonFiniteError,
    errors.GradientError,
    OSError,
)
"""What a refused call raises; everything else is a fall."""

PURE = {
    *(
        "apply",
        "vjp",
        "select",
        "flow",
        "flow_vjp",
        "check_run",
        "bound_to",
        "trained_parts",
        "draw",
        "draw_seed",
        "rank_in",
        "rank_at",
    ),
    *("merge_weights_vjp", "config", "from_config", "with_branches", "fitted", "around", "around_tasks"),
    *("children", "walk"),
    *("components_at", "choose", "new_run", "check_input", "mergeable_base", "trained_from", "encoded", "indices"),
    "in_layout",
    *(
        "checked_targets",
        "inference_output",
        "update",
        "updates_of",
        "compute",
        "compute_weighted",
        "elements",
        "terms",
        "move_to",
        "with_children",
        "run_over",
    ),
}
"""Members without checks: those that the package calls between checks, and those that subclasses implement."""

UNCHECKED = {"Activation", "Draw", "Run", "Selection", "Composite", "WeightLoadResult", "WeightLoadValidation"}
"""Records, which hold what they are given, and the base of users' containers."""


def model():
    base = Sequential({"up": DenseLayer(IN, 4, relu, rng=0), "down": DenseLayer(4, OUT, rng=1)})
    return randomised(lora_np.apply_lora(base, DyLoRAAdapter, max_rank=2, active_ranks=[1, 2], rng=0))


def plain_model():
    return Sequential({"up": DenseLayer(IN, 4, relu, rng=0), "down": DenseLayer(4, OUT, rng=1)})


def tasks():
    adapter = MultiLoRAAdapter(DenseLayer(IN, OUT, rng=0), "first", 1, rng=0)
    adapter.add_task("second", 2)
    return adapter


X, Y = batch(3, IN, seed=0), batch(3, OUT, seed=1)


def shard():
    return X, Y


class Place:
    """A folder with files to read, and the paths of files to write."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        lora_np.save_layer(model(), self.folder / "layer.npz")
        save_peft(self.folder / "peft", lora_np.apply_lora(plain_model(), StandardLoRAAdapter, rank=1, rng=0))
        weights = {"up.weight": np.ones((4, IN)), "down.weight": np.ones((OUT, 4))}
        save_safetensors(self.folder / "base.safetensors", weights)


def evil(place):
    """Values of every kind, most of them wrong for any argument."""

    def failing():
        yield 1
        raise RuntimeError("from the caller's own iterator")

    masked = np.ma.masked_array([1.0, 2.0], [True, False])
    return [
        *(None, True, False, -1, 0, 1, 2, 7, 10**20, -(10**20), 1.5, float("nan"), float("inf"), -float("inf"), 1e308, 1j),
        *("", " ", "text", "0", "up", "first", "\ud800", "a" * 300, "*", "(", b"bytes", b"", bytearray(3)),
        *([], [None], [1, 2], [2, 1], ["up"], ["first"] * 3, [[1.0], [1.0, 2.0]]),
        *((), (1,), (X, Y), (X,), {}, {"up": 1}, set(), {1}),
        *(object(), object, int, len, lambda: None, lambda *_, **__: None),
        *(print, Ellipsis, slice(1), iter([1, 2]), range(2)),
        *(np.array(1), np.array(np.nan), np.zeros(0), np.ones(IN), X.copy(), Y.copy()),
        *(np.ones((2, 3, IN)), np.ones((0, IN))),
        *(np.full((3, IN), np.nan), np.ones((3, IN)) * 1j, np.array([None] * 3)),
        *(np.array(["a"] * 3), np.ones((3, IN), bool), masked),
        *(np.ma.masked_all((3, IN)), np.ma.masked, np.float64(2), np.int8(1)),
        *(np.bool_(True), np.datetime64("2020"), np.dtype("f4")),
        *(DenseLayer(2, 2, rng=0), DenseLayer, tasks(), model(), MeanSquaredError(), MeanSquaredError, SGD(0.1), SGD),
        *(np.random.default_rng(0), np.random.RandomState(0), relu),
        *(place.folder, place.folder / "none" / "file", place.folder / "peft"),
        *(str(place.folder / "base.safetensors"), place.folder / "layer.npz", "float16", np.float32, "relu", failing),
    ]


GIVEN = {
    "input_size": lambda place: IN,
    "output_size": lambda place: OUT,
    "size": lambda place: IN,
    "input": lambda place: X.copy(),
    "output_gradient": lambda place: Y.copy(),
    "rank": lambda place: 1,
    "max_rank": lambda place: 2,
    "default_rank": lambda place: 1,
    "active_ranks": lambda place: [1, 2],
    "ranks": lambda place: [1, 2],
    "p": lambda place: 0.5,
    "default_task_name": lambda place: "first",
    "task_name": lambda place: "second",
    "task": lambda place: "first",
    "base_layer": lambda place: DenseLayer(IN, OUT, rng=0),
    "branch": lambda place: lora_np.LoRALayer(IN, OUT, 1, rng=0),
    "layers": lambda place: [DenseLayer(IN, 4, rng=0), DenseLayer(4, OUT, rng=1)],
    "layer": lambda place: model(),
    "model": lambda place: model(),
    "adapter": lambda place: DyLoRAAdapter(DenseLayer(IN, OUT, rng=0), 2, [1, 2], rng=0),
    "activation": lambda place: relu,
    "learning_rate": lambda place: 0.1,
    "function": lambda place: lambda p, t: ((p - t) ** 2).mean(),
    "data": lambda place: (X.copy(), Y.copy()),
    "loss": lambda place: MeanSquaredError(),
    "loss_function": lambda place: MeanSquaredError(),
    "optimizer": lambda place: AdamW(0.1),
    "epochs": lambda place: 1,
    "batch_size": lambda place: 2,
    "kind": lambda place: DyLoRAAdapter,
    "file": lambda place: place.folder / "layer.npz",
    "path": lambda place: place.folder / "base.safetensors",
    "folder": lambda place: place.folder / "peft",
    "parameters": lambda place: None,
    "inputs": lambda place: list(X),
    "targets": lambda place: list(Y),
    "predictions": lambda place: Y + 1,
    "subject": lambda place: lora_np.LoRALayer(IN, OUT, 2, rng=0),
    "subjects": lambda place: [lora_np.LoRALayer(IN, OUT, 2, rng=0)],
    "singular_values": lambda place: np.array([2.0, 1.0]),
    "shards": lambda place: [shard],
    "updates": lambda place: {},
    "weights": lambda place: {},
    "arrays": lambda place: {},
    "name": lambda place: "weight",
    "value": lambda place: np.zeros((IN, OUT)),
    "is_training": lambda place: True,
    "tensors": lambda place: {"a": np.ones(2)},
    "adapters": lambda place: lora_np.apply_lora(plain_model(), StandardLoRAAdapter, rank=1, rng=0),
    "weight_names": lambda place: ["weight"],
    "input_nodes": lambda place: [],
}
"""Valid values of arguments without defaults, by name."""

SURGERY = ("canonicalize", "combine", "effective_rank", "grow", "retained_energy", "spectrum", "truncate")

FUNCTIONS = {
    "lora_np.io.load_peft": load_peft,
    "lora_np.io.apply_peft": lambda model, folder: io.apply_peft(model, folder),
    "lora_np.io.save_peft": save_peft,
    "lora_np.io.load_safetensors": load_safetensors,
    "lora_np.io.save_safetensors": save_safetensors,
    "lora_np.testing.check_gradients": testing.check_gradients,
    "lora_np.testing.gradient_errors": testing.gradient_errors,
    "lora_np.training.fit": training.fit,
    "lora_np.distributed.fit_shards": fit_shards,
    "lora_np.distributed.predict": predict_shards,
    **{f"lora_np.surgery.{name}": getattr(surgery, name) for name in SURGERY},
}


FUNCTIONS_OF_CALLERS = ("rank", "loss_function", "rank_schedule", "mapping", "function", "initializer", "callbacks")
"""Arguments that may be functions, whose own errors pass through unchanged."""

OWN = ("from the caller's own iterator", "positional argument")
"""Errors of the caller's own iterators and functions, which pass through unchanged."""


class Target(NamedTuple):
    """A callable, and what makes it: for a method, the object to which it belongs."""

    name: str
    make: object
    """Returns the callable; for methods, bound to a new object."""


def targets():
    """Every public function, class and method."""
    found = [Target(name, lambda function=function: function) for name, function in FUNCTIONS.items()]
    for name in lora_np.__all__:
        value = getattr(lora_np, name)
        if inspect.isclass(value):
            record = name in UNCHECKED or issubclass(value, BaseException) or inspect.isabstract(value)
            if record or value.__module__.startswith("lora_np.models"):
                continue
        if not isinstance(value, lora_np.Activation):
            found.append(Target(f"lora_np.{name}", lambda value=value: value))
    builders = {name: lambda build=build: randomised(build(np.float64)) for name, build in PLAIN.items()}
    builders |= {kind: lambda kind=kind: randomised(adapter_builder(kind, "dense", True)(np.float64)) for kind in KINDS}
    builders |= {"loss": MeanSquaredError, "cross entropy": lora_np.SoftmaxCrossEntropy, "SGD": lambda: SGD(0.1)}
    builders |= {"AdamW": lambda: AdamW(0.1), "Momentum": lambda: Momentum(0.1)}
    for name, build in builders.items():
        kind = type(build())
        for member, attribute in inspect.getmembers(kind):
            if member.startswith("_") or member in PURE:
                continue
            if inspect.isfunction(attribute):
                found.append(Target(f"{name}: {kind.__name__}.{member}", lambda b=build, m=member: getattr(b(), m)))
            elif isinstance(attribute, property) and attribute.fset is not None:
                found.append(Target(f"{name}: {kind.__name__}.{member} = ", lambda b=build, m=member: _setter(b(), m)))
    return found


def _setter(owner, member):
    def assign(value):
        setattr(owner, member, value)

    assign.__self__ = owner
    return assign


class Fall(NamedTuple):
    """A call that broke the promise."""

    target: str
    arguments: str
    problem: str


def state(values):
    """Everything that a refused call must leave alone."""
    found = []
    for value in values:
        if isinstance(value, Layer):
            found.append(snapshot(value))
        elif isinstance(value, Optimizer):
            found.append((value.learning_rate, bits(value.get_state())))
        elif isinstance(value, np.ndarray):
            found.append(np.asarray(value).tobytes() if value.dtype.kind != "O" else len(value))
        elif isinstance(value, AdapterWeights):
            found.append(sorted(value.layers))
    return found


def attempt(target, place, rng, pool=None):
    """One call with one or two bad arguments; returns a Fall, or None."""
    call = target.make()
    signature = inspect.signature(call)
    parameters = [p for p in signature.parameters.values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    arguments = {p.name: GIVEN[p.name](place) for p in parameters if p.default is p.empty and p.name in GIVEN}
    if "model" in arguments and target.name.endswith("apply_lora"):
        arguments |= {"model": plain_model(), "adapter": StandardLoRAAdapter, "rank": 1}
    pool = evil(place) if pool is None else pool
    for parameter in rng.sample(parameters, min(len(parameters), rng.choice([1, 1, 1, 2]))):
        arguments[parameter.name] = rng.choice(pool)
        if "bool" in str(parameter.annotation) and isinstance(arguments[parameter.name], np.ndarray):
            arguments[parameter.name] = True  # that an array is neither true nor false, NumPy says itself
    if parameters and any(p.default is p.empty and p.name not in arguments for p in parameters):
        for p in parameters:
            if p.default is p.empty and p.name not in arguments:
                arguments[p.name] = rng.choice(pool)
    positional = [arguments.pop(p.name) for p in parameters if p.kind is p.POSITIONAL_ONLY and p.name in arguments]
    involved = [getattr(call, "__self__", None), *positional, *arguments.values()]
    before = state(involved)
    shown = ", ".join([*(repr(value)[:60] for value in positional), *(f"{n}={v!r:.60}" for n, v in arguments.items())])
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            call(*positional, **arguments)
    except errors.NonFiniteError:
        pass  # the training began, so it has drawn numbers
    except REFUSALS as error:
        if state(involved) != before:
            return Fall(target.name, shown, f"changed something, then raised {error!r:.100}")
        if not str(error):
            return Fall(target.name, shown, f"{type(error).__name__} without a message")
    except (MemoryError, Exception) as error:
        if any(word in str(error) for word in OWN) or any(callable(arguments.get(name)) for name in FUNCTIONS_OF_CALLERS):
            return None
        return Fall(target.name, shown, f"{type(error).__name__}: {error}"[:200])
    return None


def attack(count, seed=0, deadline=None):
    """Make this many calls, in turn for every target; returns the number of calls and the falls."""
    rng, falls, done = random.Random(seed), [], 0
    every = targets()
    while done < count and not (deadline is not None and deadline()):
        with tempfile.TemporaryDirectory(dir=MEMORY) as scratch, contextlib.chdir(scratch), without_fsync():
            place = Place(scratch)
            for target in every:
                if done >= count or (deadline is not None and deadline()):
                    break
                fall = attempt(target, place, rng)
                done += 1
                if fall is not None:
                    falls.append(fall)
    return done, falls
