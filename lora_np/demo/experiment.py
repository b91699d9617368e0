"""What the demo measures: computation alone; nothing is printed, and no file is written."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

from .._typing import Array
from ..adapters import DyLoRAAdapter, MultiLoRAAdapter, StandardLoRAAdapter
from ..terminal.progress import Listener, silent
from ..data import load_digits
from ..factors.surgery import canonicalize
from ..functions.activations import relu
from ..functions.initializers import he_uniform
from ..functions.losses import SoftmaxCrossEntropy
from ..layers import AffineLayer, DenseLayer, Layer, Sequential
from ..models.adapting import apply_lora, merge_in_place, select_task
from ..training.fit import Progress, fit
from ..training.optimizers import Adam

View: TypeAlias = Callable[[Array], Array]
"""A way to look at images, (rows, height, width)."""


def upright(images: Array) -> Array:
    """The images as they are: what the base is trained on."""
    return images


def rotated(images: Array) -> Array:
    """A quarter turn."""
    return np.rot90(images, axes=(1, 2))


def inverted(images: Array) -> Array:
    """Dark on bright."""
    return 1 - images


def mirrored(images: Array) -> Array:
    """Left and right exchanged."""
    return images[:, :, ::-1]


def shifted(images: Array) -> Array:
    """Rotated and inverted: every pixel means something else, more than a change of rank 1 can put right."""
    return inverted(rotated(images))


VIEWS: Mapping[str, View] = {"rotated": rotated, "inverted": inverted, "mirrored": mirrored}
"""The tasks that share one base."""


@dataclass(frozen=True)
class Settings:
    """All that can be chosen. Equal settings give equal numbers, apart from times."""

    seed: int = 0
    test_rows: int = 600
    hidden: int = 128
    base_epochs: int = 20
    base_learning_rate: float = 0.003
    ranks: tuple[int, ...] = (1, 2, 4, 8)
    """Of the comparison, ascending; the last is the full rank."""
    rank_epochs: int = 50
    task_rank: int = 4
    task_epochs: int = 20
    learning_rate: float = 0.02
    """Of adapters."""
    batch_size: int = 16
    """Small: larger products make BLAS start threads, which costs more time here than it saves."""
    margin: float = 0.02
    """How much accuracy one DyLoRA at the full rank may lack against a LoRA trained for that rank alone."""

    def generator(self, *purpose: int) -> np.random.Generator:
        """A generator of its own for each purpose, so that no part depends on what ran before it."""
        return np.random.default_rng((self.seed, *purpose))


SPLIT, BASE, DYLORA, LORA, TASKS, MIXED_TASKS, MIXED_BATCH = range(7)
"""The purposes of random numbers."""


class Rows(NamedTuple):
    """Flat images, and their labels."""

    inputs: Array
    labels: Array


class Digits:
    """The digits, split at random into those to train on and those to test on."""

    def __init__(self, settings: Settings) -> None:
        self._images, self._labels = load_digits()
        order = settings.generator(SPLIT).permutation(len(self._images))
        self._test, self._train = np.split(order, [settings.test_rows])

    def training(self, view: View) -> Rows:
        """What to train on, seen in one way."""
        return self._rows(self._train, view)

    def testing(self, view: View) -> Rows:
        """What to test on, seen in one way."""
        return self._rows(self._test, view)

    def _rows(self, which: Array, view: View) -> Rows:
        return Rows(view(self._images[which]).reshape(len(which), -1), self._labels[which])


# ---------------------------------------------------------------- training and scoring


@dataclass(frozen=True)
class Score:
    """How good a model is on test rows."""

    accuracy: float
    """From 0 to 1."""
    nll: float
    """The mean negative log-likelihood of the right label."""


def score(model: Layer, rows: Rows) -> Score:
    """The score of a model's predictions."""
    logits = model.predict(rows.inputs)
    right = logits.argmax(axis=-1) == rows.labels
    return Score(float(right.mean()), SoftmaxCrossEntropy()(logits, rows.labels))


def train(
    model: Layer,
    rows: Rows,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    rng: np.random.Generator,
    callbacks: Iterable[Callable[[Progress], None]],
    tasks: Sequence[str] | None = None,
) -> float:
    """Train with Adam, the learning rate falling linearly to zero: the same for all that is compared.

    Returns
    -------
    float
        The time that it took, in seconds.
    """
    optimizer = Adam(learning_rate)

    def slow_down(progress: Progress) -> None:
        optimizer.learning_rate = learning_rate * (1 - progress.step / progress.steps)

    start = time.perf_counter()
    callbacks = (slow_down, *callbacks)
    fit(model, rows, SoftmaxCrossEntropy(), optimizer, epochs, batch_size, tasks=tasks, rng=rng, callbacks=callbacks)
    return time.perf_counter() - start


def variants(model: Layer) -> Iterator[str]:
    """Switch a model to each of its ranks or tasks in turn; yields the name of what it is switched to."""
    layers = model.walk().values()
    dynamic = [layer for layer in layers if isinstance(layer, DyLoRAAdapter)]
    shared = [layer for layer in layers if isinstance(layer, MultiLoRAAdapter)]
    for rank in dynamic[0].active_ranks if dynamic else ():
        for adapter in dynamic:
            adapter.set_deployment_rank(rank)
        yield f"rank {rank}"
    for task in list(shared[0].task_adapters) if shared else ():
        select_task(model, task)
        yield task
    if not dynamic and not shared:
        yield "as it is"


# ---------------------------------------------------------------- the base


@dataclass(frozen=True)
class BaseResult:
    """The network that everything else adapts."""

    sizes: tuple[int, ...]
    train_rows: int
    test_rows: int
    upright: Score
    shifted: Score
    seconds: float


def train_base(digits: Digits, settings: Settings, listen: Listener = silent) -> tuple[BaseResult, Layer]:
    """A network for upright digits, and how it does on upright and on shifted ones."""
    rng = settings.generator(BASE)
    rows = digits.training(upright)
    sizes = (rows.inputs.shape[-1], settings.hidden, settings.hidden, int(rows.labels.max()) + 1)
    base = Sequential(
        {
            "hidden1": DenseLayer(sizes[0], sizes[1], relu, initializer=he_uniform, rng=rng),
            "hidden2": DenseLayer(sizes[1], sizes[2], relu, initializer=he_uniform, rng=rng),
            "output": DenseLayer(sizes[2], sizes[3], rng=rng),
        }
    )
    rate = settings.base_learning_rate
    seconds = train(base, rows, settings.base_epochs, rate, settings.batch_size, rng, listen("base"))
    test, moved = digits.testing(upright), digits.testing(shifted)
    result = BaseResult(sizes, len(rows.inputs), len(test.inputs), score(base, test), score(base, moved), seconds)
    return result, base


# ---------------------------------------------------------------- one adapter for every rank


@dataclass(frozen=True)
class Curve:
    """The quality that one method reaches at each rank."""

    method: str
    scores: tuple[Score, ...]
    """One for each rank."""
    seconds: tuple[float, ...]
    """One for each training."""


@dataclass(frozen=True)
class RankResult:
    """DyLoRA against what else one can do to have an adapter at every rank."""

    ranks: tuple[int, ...]
    dylora: Curve
    dedicated: Curve
    """A LoRA trained for each rank."""
    cut: Curve
    """The LoRA of the full rank, of which only the first components are kept."""
    best_cut: Curve
    """The same LoRA, its components first sorted by size: no other cut is closer to its weights."""
    margin: float

    @property
    def curves(self) -> tuple[Curve, ...]:
        """All methods."""
        return self.dylora, self.dedicated, self.cut, self.best_cut

    @property
    def gain(self) -> float:
        """The accuracy that DyLoRA has over the cut LoRA at the lowest rank."""
        return self.dylora.scores[0].accuracy - self.cut.scores[0].accuracy

    @property
    def gain_over_best_cut(self) -> float:
        """The same over its best cut."""
        return self.dylora.scores[0].accuracy - self.best_cut.scores[0].accuracy

    @property
    def loss(self) -> float:
        """The accuracy that DyLoRA lacks against the dedicated LoRA at the full rank."""
        return self.dedicated.scores[-1].accuracy - self.dylora.scores[-1].accuracy

    @property
    def within_margin(self) -> bool:
        """Whether that is little."""
        return self.loss <= self.margin


def compare_ranks(base: Layer, digits: Digits, settings: Settings, listen: Listener = silent) -> tuple[RankResult, Layer]:
    """Adapt the base to shifted digits at every rank, in four ways; also returns the DyLoRA model."""
    rows, test = digits.training(shifted), digits.testing(shifted)
    budget = settings.rank_epochs, settings.learning_rate, settings.batch_size
    rng = settings.generator(DYLORA)
    dynamic = _with_dylora(base, settings, rng)
    seconds = train(dynamic, rows, *budget, rng, listen("DyLoRA"))
    dylora = Curve("DyLoRA", _at_each_rank(dynamic, test), (seconds,))

    loras, times = [], []
    for rank in settings.ranks:
        rng = settings.generator(LORA, rank)
        loras.append(_with_lora(base, rank, rng))
        times.append(train(loras[-1], rows, *budget, rng, listen(f"LoRA of rank {rank}")))
    dedicated = Curve("a LoRA for each rank", tuple(score(lora, test) for lora in loras), tuple(times))

    # A DyLoRA adapter that holds another's arrays cuts them: a deployment rank is a slice.
    cutter = _with_dylora(base, settings, rng)
    cutter.load_weights(loras[-1].named_parameters())
    name = f"LoRA of rank {settings.ranks[-1]}"
    cut = Curve(f"{name}, cut", _at_each_rank(cutter, test), (times[-1],))
    _sort_components(cutter)
    best_cut = Curve(f"{name}, best cut", _at_each_rank(cutter, test), (times[-1],))
    return RankResult(settings.ranks, dylora, dedicated, cut, best_cut, settings.margin), dynamic


def _with_dylora(base: Layer, settings: Settings, rng: np.random.Generator) -> Layer:
    ranks = settings.ranks
    return apply_lora(base, lambda layer: DyLoRAAdapter(layer, ranks[-1], ranks, rng=rng))


def _with_lora(base: Layer, rank: int, rng: np.random.Generator) -> Layer:
    return apply_lora(base, lambda layer: StandardLoRAAdapter(layer, rank, rng=rng))


def _at_each_rank(model: Layer, rows: Rows) -> tuple[Score, ...]:
    return tuple(score(model, rows) for _ in variants(model))


def _sort_components(model: Layer) -> None:
    """Put the components of every branch in the order of their size."""
    for adapter in model.walk().values():
        if isinstance(adapter, DyLoRAAdapter):
            branch = adapter.lora_layer
            branch.load_weights(canonicalize(branch).named_parameters())


@dataclass(frozen=True)
class Samples:
    """One digit of each kind, and what the models take it for."""

    labels: Array
    upright: Array
    """Images."""
    shifted: Array
    """Images."""
    predictions: tuple[tuple[str, bool, Array], ...]
    """A model, whether it sees the shifted digits, and the labels that it gives."""


def sample(base: Layer, dynamic: Layer, digits: Digits) -> Samples:
    """The first test image of each digit."""
    plain, moved = digits.testing(upright), digits.testing(shifted)
    _, first = np.unique(plain.labels, return_index=True)
    height = int(np.sqrt(plain.inputs.shape[-1]))

    def labels(model: Layer, rows: Rows) -> Array:
        return model.predict(rows.inputs[first]).argmax(axis=-1)

    predictions = [("base", False, labels(base, plain)), ("base", True, labels(base, moved))]
    predictions += [(f"DyLoRA, {name}", True, labels(dynamic, moved)) for name in variants(dynamic)]
    images = [rows.inputs[first].reshape(-1, height, height) for rows in (plain, moved)]
    return Samples(plain.labels[first], images[0], images[1], tuple(predictions))


# ---------------------------------------------------------------- many tasks on one base


@dataclass(frozen=True)
class TaskResult:
    """One task of a MultiLoRA model, through the training of the others."""

    task: str
    base_accuracy: float
    accuracy: float
    """After the task's own training."""
    final_accuracy: float
    """After the other tasks' training."""
    mixed_accuracy: float
    """Of another model, which learned all tasks at once from mixed batches."""
    changed_bytes: int
    """Of the task's parameters, by the training of later tasks."""
    changed_output: float
    """The largest difference of an output, likewise."""
    seconds: float


@dataclass(frozen=True)
class SharingResult:
    """Several tasks on one base."""

    rank: int
    tasks: tuple[TaskResult, ...]
    mixed_seconds: float
    views: tuple[str, ...]
    accuracies: tuple[tuple[float, ...], ...]
    """Of the base alone, then of each task's adapter, on each view of the test digits."""
    mixed_rows: int
    mixed_difference: float
    """The largest difference between a mixed batch's outputs and those of a pass for each task."""


def share_base(base: Layer, digits: Digits, settings: Settings, listen: Listener = silent) -> tuple[SharingResult, Layer]:
    """Train the tasks one after the other on one base, and once more together; also returns the first model."""
    budget = settings.task_epochs, settings.learning_rate, settings.batch_size
    rng = settings.generator(TASKS)
    model = _with_tasks(base, settings, rng)
    kept, seconds = {}, {}
    for task, view in VIEWS.items():
        select_task(model, task)
        seconds[task] = train(model, digits.training(view), *budget, rng, listen(f"task {task}"))
        kept[task] = (_parameters_of(model, task), model.predict(digits.testing(view).inputs))
    rng = settings.generator(MIXED_TASKS)
    together = _with_tasks(base, settings, rng)
    rows, tasks = _all_tasks(digits)
    mixed_seconds = train(together, rows, *budget, rng, listen("all tasks"), tasks)
    results = []
    for task, view in VIEWS.items():
        test = digits.testing(view)
        parameters, outputs = kept[task]
        select_task(model, task)
        select_task(together, task)
        results.append(
            TaskResult(
                task,
                base_accuracy=score(base, test).accuracy,
                accuracy=float((outputs.argmax(axis=-1) == test.labels).mean()),
                final_accuracy=score(model, test).accuracy,
                mixed_accuracy=score(together, test).accuracy,
                changed_bytes=sum(a != b for a, b in zip(parameters, _parameters_of(model, task), strict=True)),
                changed_output=_distance(model.predict(test.inputs), outputs),
                seconds=seconds[task],
            )
        )
    views = {"upright": upright, **VIEWS}
    tests = [digits.testing(view) for view in views.values()]
    accuracies = [tuple(score(base, test).accuracy for test in tests)]
    accuracies += [tuple(score(model, test).accuracy for test in tests) for _ in variants(model)]
    mixed_rows, difference = _mixed_difference(model, base, digits, settings)
    result = SharingResult(
        settings.task_rank, tuple(results), mixed_seconds, tuple(views), tuple(accuracies), mixed_rows, difference
    )
    return result, model


def _with_tasks(base: Layer, settings: Settings, rng: np.random.Generator) -> Layer:
    first, *others = VIEWS

    def adapter(layer: AffineLayer) -> MultiLoRAAdapter:
        adapter = MultiLoRAAdapter(layer, first, settings.task_rank, rng=rng)
        for task in others:
            adapter.add_task(task, settings.task_rank)
        return adapter

    return apply_lora(base, adapter)


def _parameters_of(model: Layer, task: str) -> bytes:
    adapters = [layer for layer in model.walk().values() if isinstance(layer, MultiLoRAAdapter)]
    return b"".join(adapter.get_task_adapter(task).get_parameters().tobytes() for adapter in adapters)


def _all_tasks(digits: Digits) -> tuple[Rows, list[str]]:
    """The training rows of every task, and the task of each row."""
    parts = [digits.training(view) for view in VIEWS.values()]
    rows = Rows(np.concatenate([part.inputs for part in parts]), np.concatenate([part.labels for part in parts]))
    return rows, [task for task, part in zip(VIEWS, parts, strict=True) for _ in part.labels]


def _mixed_difference(model: Layer, base: Layer, digits: Digits, settings: Settings) -> tuple[int, float]:
    """A batch of all tasks, and of rows for the base alone: one pass against a pass for each task."""
    names = [None, *VIEWS]
    tests = [digits.testing(view).inputs for view in (upright, *VIEWS.values())]
    picked = settings.generator(MIXED_BATCH).integers(len(names), size=len(tests[0]))
    inputs = np.choose(picked[:, np.newaxis], tests)
    mixed = model.forward(inputs, tasks=[names[i] for i in picked])
    single = np.empty_like(mixed)
    for i, name in enumerate(names):
        if name is not None:
            select_task(model, name)
        single[picked == i] = (base if name is None else model).predict(inputs[picked == i])
    return len(inputs), _distance(mixed, single)


# ---------------------------------------------------------------- merging and counting


@dataclass(frozen=True)
class MergeResult:
    """A model with its adapters merged away, against the model with them."""

    model: str
    variant: str
    layers: int
    """How many were merged."""
    difference: float
    """The largest of an output."""


def merge(name: str, model: Layer, inputs: Array) -> list[MergeResult]:
    """Merge a copy of the model at each of its ranks or tasks."""
    results = []
    for variant in variants(model):
        merged = model.clone()
        layers = merge_in_place(merged)
        results.append(MergeResult(name, variant, layers, _distance(merged.predict(inputs), model.predict(inputs))))
    return results


@dataclass(frozen=True)
class Count:
    """How many parameters train."""

    what: str
    parameters: int
    share: float
    """Of those of full fine-tuning."""


def count(base: Layer, settings: Settings) -> list[Count]:
    """The parameters that each way of adapting the base trains."""
    rng = settings.generator()
    counts = {"full fine-tuning": base.parameter_count}
    counts |= {f"LoRA of rank {rank}": _with_lora(base, rank, rng).parameter_count for rank in settings.ranks}
    counts[f"DyLoRA up to rank {settings.ranks[-1]}"] = _with_dylora(base, settings, rng).parameter_count
    per_task = _with_tasks(base, settings, rng).parameter_count // len(VIEWS)
    counts[f"MultiLoRA of rank {settings.task_rank}, each task"] = per_task
    return [Count(what, parameters, parameters / base.parameter_count) for what, parameters in counts.items()]


def difference(model: Layer, other: Layer, inputs: Array) -> float:
    """The largest difference between two models' outputs, at every rank or for every task."""
    pairs = zip(variants(model), variants(other), strict=True)
    return max(_distance(model.predict(inputs), other.predict(inputs)) for _ in pairs)


def _distance(outputs: Array, others: Array) -> float:
    return float(np.abs(outputs - others).max())


@dataclass(frozen=True)
class Check:
    """Something that must hold whatever the training gave."""

    what: str
    value: float
    limit: float

    @property
    def ok(self) -> bool:
        """Whether it holds; NaN does not."""
        return self.value <= self.limit
