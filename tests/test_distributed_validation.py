"""Validation and patience of `fit_shards`: those of `fit`, also in a run that is interrupted."""

import contextlib
from functools import partial

import numpy as np
import pytest

from lora_np import Adam, ArgumentError, MeanSquaredError, fit
from lora_np.distributed import fit_shards
from tests import distributed_shards as data

SHARDS = [partial(data.samples, 0, 9), partial(data.samples, 1, 7)]
HELD_OUT = data.samples(2, 8)
RUNS = {
    "validation": {"validation": HELD_OUT},
    "patience": {"validation": HELD_OUT, "patience": 1},
    "tolerance": {"validation": HELD_OUT, "patience": 1, "tolerance": 0.5},
    "training loss": {"patience": 1, "tolerance": 0.01},
}
each = pytest.mark.parametrize("options", RUNS.values(), ids=RUNS.keys())


def run(function, samples, rate=0.3, epochs=12, **options):
    """Everything that a training run changes; at this rate, the losses soon rise."""
    model, optimizer = data.network(), Adam(rate)
    history = function(model, samples, MeanSquaredError(), optimizer, epochs, 4, **{"rng": 0} | options)
    return history, model.get_parameters().tobytes(), {key: array.tobytes() for key, array in optimizer.get_state().items()}


@each
def test_one_shard_is_fit_to_the_bit(options):
    assert run(fit_shards, SHARDS[:1], **options) == run(fit, SHARDS[0](), **options)


def test_the_runs_with_patience_end_early():
    for name in ("patience", "tolerance", "training loss"):
        assert len(run(fit_shards, SHARDS, **RUNS[name])[0].epoch_losses) < 12


def test_the_best_parameters_are_put_back():
    seen = {}

    def note(progress):
        if progress.validation_loss is not None:
            seen[progress.validation_loss] = progress.model.get_parameters().tobytes()

    history, parameters, _ = run(fit_shards, SHARDS, callbacks=[note], **RUNS["patience"])
    assert list(seen) == history.validation_losses
    assert parameters == seen[min(history.validation_losses)] != seen[history.validation_losses[-1]]


@each
@pytest.mark.parametrize("step", [2, 3, 5, 6])  # of which each third ends an epoch
def test_a_resumed_run_ends_with_the_same_bits(options, step, tmp_path):
    def stop(progress):
        if progress.step == step:
            raise KeyError

    expected = run(fit_shards, SHARDS, **options)
    options = options | {"checkpoint": tmp_path / "run.npz", "checkpoint_every": 1}
    with contextlib.suppress(KeyError):
        run(fit_shards, SHARDS, callbacks=[stop], **options)
    assert run(fit_shards, SHARDS, resume=True, **options) == expected


@each
def test_a_finished_run_is_not_repeated(options, tmp_path):
    options = options | {"checkpoint": tmp_path / "run.npz"}
    expected = run(fit_shards, SHARDS, **options)
    assert run(fit_shards, SHARDS, resume=True, callbacks=[lambda progress: pytest.fail("a step")], **options) == expected


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"patience": 2}, "patience"), ({"tolerance": 0.1}, "tolerance"), ({"validation": SHARDS[0]()}, "validation")],
)
def test_the_checkpoint_of_another_run_is_refused(changes, name, tmp_path):
    options = {"checkpoint": tmp_path / "run.npz", **RUNS["patience"]}
    run(fit_shards, SHARDS, **options)
    with pytest.raises(ArgumentError, match=f"belongs to a different training run: {name} is"):
        run(fit_shards, SHARDS, resume=True, **options | changes)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"validation": (np.ones((2, 5)), np.ones((3, 3)))},
            "validation: data must have the same, non-zero number of rows",
        ),
        ({"validation": 3}, "validation must be"),
        ({"patience": 0}, "patience must be at least 1"),
        ({"tolerance": 0.1}, "tolerance requires patience"),
    ],
)
def test_bad_arguments_are_refused_before_the_first_step(options, words):
    model = data.network()
    before = model.get_parameters()
    with pytest.raises(ArgumentError, match=words):
        fit_shards(model, SHARDS, MeanSquaredError(), Adam(), 1, 4, **options)
    np.testing.assert_array_equal(model.get_parameters(), before)
