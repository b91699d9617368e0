"""`fit(..., accumulate=k)`: a step in several passes equals a step on all of their rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_np import (
    SGD,
    Adam,
    AdamW,
    ArgumentError,
    DenseLayer,
    DyLoRAAdapter,
    Loss,
    MeanSquaredError,
    Momentum,
    MultiLoRAAdapter,
    NonFiniteError,
    Regularization,
    Sequential,
    SoftmaxCrossEntropy,
    apply_lora,
    fit,
    tanh,
)
from lora_np.training import LinearDecay, independent_ranks, rank_per_row, shared_rank
from lora_np.training.accumulation import summed

ROWS = 13
RNG = np.random.default_rng(0)
X = RNG.standard_normal((ROWS, 4))
T = RNG.standard_normal((ROWS, 3))
LABELS = np.array([0, -1, 2, 1, -1, -1, -1, 0, 1, 2, 2, 0, 1])
SENTENCES, TOKENS = RNG.standard_normal((ROWS, 2, 4)), RNG.integers(-1, 3, (ROWS, 2))
TASKS = [["a", "b", None][i % 3] for i in range(ROWS)]
OPTIMIZERS = {
    "SGD": lambda: SGD(0.1),
    "Momentum": lambda: Momentum(0.1),
    "Adam": lambda: Adam(0.05, epsilon=1e-3),
    "AdamW": lambda: AdamW(0.05, epsilon=1e-3, weight_decay=0.1),
}


def base():
    return Sequential([DenseLayer(4, 5, tanh, rng=1), DenseLayer(5, 3, regularization=Regularization(l2=0.1), rng=2)])


def dylora(mode="full"):
    model = apply_lora(base(), DyLoRAAdapter, max_rank=3, active_ranks=[1, 2, 3], mode=mode, rng=3)
    return with_branches(model)


def multilora():
    adapter = MultiLoRAAdapter(DenseLayer(4, 3, rng=1), "a", 2, rng=3)
    adapter.add_task("b", 3)
    return with_branches(adapter)


def with_branches(model):
    """With B drawn, so that A has gradients."""
    rng = np.random.default_rng(4)
    for name, p in model.named_parameters().items():
        if name.endswith("matrix_b"):
            p[...] = rng.standard_normal(p.shape)
    return model


CASES = {
    "dense": (base, T, MeanSquaredError, {}),
    "labels, some ignored": (base, LABELS, SoftmaxCrossEntropy, {}),
    "labels of tokens, some ignored": (base, TOKENS, SoftmaxCrossEntropy, {}),
    "clipped and scheduled": (base, T, MeanSquaredError, {"clip_norm": 0.1, "schedule": LinearDecay()}),
    "DyLoRA": (dylora, T, MeanSquaredError, {"rank_schedule": shared_rank}),
    "DyLoRA, frozen": (lambda: dylora("frozen"), T, MeanSquaredError, {"rank_schedule": shared_rank}),
    "DyLoRA, independent ranks": (dylora, T, MeanSquaredError, {"rank_schedule": independent_ranks}),
    "DyLoRA, a rank per row": (dylora, T, MeanSquaredError, {"rank_schedule": rank_per_row}),
    "mixed tasks": (multilora, T, MeanSquaredError, {"tasks": TASKS}),
}


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=25, deadline=None)
@given(
    batch_size=st.integers(2, 7),
    accumulate=st.integers(2, 4),
    kind=st.sampled_from(list(OPTIMIZERS)),
    seed=st.integers(0, 2**16),
)
def test_passes_of_a_step_equal_the_larger_batch(case, batch_size, accumulate, kind, seed):
    build, targets, loss, options = CASES[case]

    def train(batch_size, **more):
        model, optimizer = build(), OPTIMIZERS[kind]()
        inputs = SENTENCES if targets is TOKENS else X
        history = fit(model, (inputs, targets), loss(), optimizer, 2, batch_size, rng=seed, **options, **more)
        return model.get_parameters(), history, optimizer.get_state()

    whole, expected, state = train(batch_size * accumulate)
    parameters, history, own_state = train(batch_size, accumulate=accumulate)
    np.testing.assert_allclose(parameters, whole, rtol=0, atol=1e-11)
    np.testing.assert_allclose(history.step_losses, expected.step_losses, rtol=1e-11)
    np.testing.assert_allclose(history.epoch_losses, expected.epoch_losses, rtol=1e-11)
    assert history.ranks == expected.ranks
    assert own_state.keys() == state.keys()
    for name, array in state.items():
        np.testing.assert_allclose(own_state[name], array, rtol=0, atol=1e-11, err_msg=name)


def test_passes_have_the_rows_of_the_batch_size():
    sizes = []

    class Noted(Loss):
        def compute(self, predictions, targets):
            sizes.append(len(predictions))
            return MeanSquaredError().compute(predictions, targets)

    history = fit(base(), (X, T), Noted(), SGD(0.1), 1, 3, accumulate=2, rng=0)
    assert sizes == [3, 3, 3, 3, 1]
    assert len(history.step_losses) == 3


def test_the_trained_part_of_a_sum_contains_those_of_its_pieces():
    g, short, long = np.ones((2, 4)), (slice(None), slice(0, 1)), (slice(None), slice(1, 3))
    for first, second in [(short, long), (long, short)]:
        _, gradients, parts = summed([(0.25, 1.0, {"a": g, "b": g}, {"a": first}), (0.75, 2.0, {"a": g}, {"a": second})])
        assert parts == {"a": (slice(None), slice(None, 3))}
        np.testing.assert_array_equal(gradients["b"], g / 4)
    for first, second in [({"a": short}, {}), ({}, {"a": short})]:
        assert summed([(0.5, 1.0, {"a": g}, first), (0.5, 1.0, {"a": g}, second)])[2] == {}


def test_a_loss_that_is_not_finite_in_one_pass_stops_the_step():
    model, x = base(), X.copy()
    before = model.get_parameters()
    targets = T.copy()
    targets[-1] = 1e200
    with pytest.raises(NonFiniteError, match="step 1, epoch 1: the loss is inf"):
        fit(model, (x, targets), MeanSquaredError(), SGD(0.1), 1, 3, shuffle=False, accumulate=5)
    np.testing.assert_array_equal(model.get_parameters(), before)


def test_a_schedule_of_ranks_must_return_one_for_all_passes():
    with pytest.raises(ArgumentError, match="rank_schedule must return a rank, got None"):
        fit(dylora(), (X, T), MeanSquaredError(), SGD(0.1), 1, 3, accumulate=2, rank_schedule=lambda *_: None)


@pytest.mark.parametrize("accumulate", [0, 1.5, "2", None])
def test_the_number_of_passes_is_a_positive_integer(accumulate):
    model = base()
    before = model.get_parameters()
    with pytest.raises(ArgumentError, match="accumulate must"):
        fit(model, (X, T), MeanSquaredError(), SGD(0.1), 1, 3, accumulate=accumulate)
    np.testing.assert_array_equal(model.get_parameters(), before)
