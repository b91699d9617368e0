"""The base network, trained on upright digits; everything else in the demo adapts it."""

from dataclasses import dataclass

from ..functions.activations import relu
from ..functions.initializers import he_uniform
from ..layers import DenseLayer, Layer, Sequential
from ..terminal.progress import Listener, silent
from .digits import Digits, shifted, upright
from .settings import Settings, Stream
from .training import Score, score, train


@dataclass(frozen=True)
class BaseResult:
    """The base network and its quality."""

    sizes: tuple[int, ...]
    """The number of inputs, then the output size of each layer."""
    train_rows: int
    test_rows: int
    upright: Score
    shifted: Score
    seconds: float


def train_base(digits: Digits, settings: Settings, listen: Listener = silent) -> tuple[BaseResult, Layer]:
    """Train the base on upright digits, and score it on upright and on shifted ones."""
    rng = settings.generator(Stream.BASE)
    rows = digits.training(upright)
    sizes = (rows.inputs.shape[-1], settings.hidden, settings.hidden, int(rows.labels.max()) + 1)
    base = Sequential(
        {
            "hidden1": DenseLayer(sizes[0], sizes[1], relu, initializer=he_uniform, rng=rng),
            "hidden2": DenseLayer(sizes[1], sizes[2], relu, initializer=he_uniform, rng=rng),
            "output": DenseLayer(sizes[2], sizes[3], rng=rng),
        }
    )
    seconds = train(base, rows, settings.base_budget, rng, listen("base"))
    test = digits.testing(upright)
    scores = score(base, test), score(base, digits.testing(shifted))
    return BaseResult(sizes, len(rows.inputs), len(test.inputs), *scores, seconds), base
