"""`fit(..., checkpoint=path, resume=True)`: an interrupted run ends with the bits of an uninterrupted one."""

import contextlib
import os
import signal
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_np import (
    SGD,
    Adam,
    AdamW,
    ArgumentError,
    DenseLayer,
    DyLoRAAdapter,
    FormatError,
    Huber,
    MeanSquaredError,
    Momentum,
    MultiLoRAAdapter,
    NonFiniteError,
    Sequential,
    StandardLoRAAdapter,
    _archive,
    apply_lora,
    fit,
    tanh,
)
from lora_np.training import CosineDecay, SortedStart, independent_ranks, rank_per_row

ROWS = np.random.default_rng(0)
X, T = ROWS.normal(size=(20, 5)), ROWS.normal(size=(20, 3))
TASKS, WEIGHTS = ["a", "b"] * 10, ROWS.uniform(0, 1, 20)


def network(kind, **settings):
    dense = Sequential([DenseLayer(5, 6, tanh, rng=1), DenseLayer(6, 3, rng=2)])
    return apply_lora(dense, kind, rng=3, **settings)


def tasks():
    adapter = MultiLoRAAdapter(DenseLayer(5, 3, rng=1), "a", 2, rng=2)
    adapter.add_task("b", 1)
    return adapter


lora = partial(network, StandardLoRAAdapter, rank=2)
dylora = partial(network, DyLoRAAdapter, max_rank=3, active_ranks=[1, 2, 3])
VALIDATION = (X[:7] + 0.1, T[:7])

RUNS = {
    "LoRA": (lora, Adam, {}),
    "in order": (lora, Momentum, {"shuffle": False}),
    "dropout": (partial(lora, dropout=0.5), Adam, {}),
    "weights": (lora, AdamW, {"weights": WEIGHTS}),
    "accumulate": (dylora, Adam, {"accumulate": 2}),
    "a schedule": (lora, Adam, {"schedule": CosineDecay(warmup=0.2), "groups": {"*.matrix_b": 4.0}}),
    "clipping": (lora, partial(AdamW, weight_decay=0.1), {"clip_norm": 0.5, "decay": {"*.matrix_a": 0.0}}),
    "validation": (lora, Adam, {"validation": VALIDATION}),
    "patience": (lora, lambda rate: Adam(60 * rate), {"validation": VALIDATION, "patience": 1}),
    "DyLoRA": (dylora, Adam, {}),
    "a rank per row": (dylora, SGD, {"rank_schedule": rank_per_row}),
    "independent ranks": (dylora, Momentum, {"rank_schedule": independent_ranks}),
    "a sorted start": (dylora, Adam, {"rank_schedule": SortedStart(5)}),
    "tasks": (tasks, Adam, {"tasks": TASKS}),
    "tasks apart": (tasks, Adam, {"tasks": TASKS, "average": "task", "validation": (X, T, TASKS), "patience": 3}),
}


def run(name, path=None, epochs=4, callbacks=(), resume=False, **changes):
    """A training run from the beginning; returns everything that it changes."""
    build, make, settings = RUNS[name]
    model, random = build(), np.random.default_rng(4)
    optimizer = make(0.05)
    settings = {"callbacks": callbacks, "checkpoint": path, "resume": resume, **settings, **changes}
    history = fit(model, (X, T), MeanSquaredError(), optimizer, epochs, 3, rng=random, **settings)
    state = {key: array.tobytes() for key, array in optimizer.get_state().items()}
    return vars(history), model.get_parameters().tobytes(), state, optimizer.learning_rate, random.bit_generator.state


def stop_at(step, how):
    def callback(progress):
        if progress.step == step:
            how()

    return callback


def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def crash():
    raise KeyError("crash")


@pytest.mark.parametrize("name", RUNS)
@given(data=st.data())
def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(tmp_path_factory, name, data):
    path = tmp_path_factory.mktemp("run") / "checkpoint.npz"
    expected = run(name)
    for _ in range(data.draw(st.integers(1, 2))):
        step = data.draw(st.integers(1, len(expected[0]["step_losses"])))
        how, error = data.draw(st.sampled_from([(ctrl_c, KeyboardInterrupt), (crash, KeyError)]))
        resumes = path.exists()
        with contextlib.suppress(error):  # the last step of the earlier run may be beyond it
            run(name, path, callbacks=[stop_at(step, how)], resume=resumes)
    assert run(name, path, resume=True) == expected


@pytest.mark.parametrize("name", ["LoRA", "patience", "a schedule"])
def test_a_finished_run_is_not_repeated(tmp_path, name):
    path = tmp_path / "checkpoint.npz"
    expected = run(name, path)
    bits = path.read_bytes()
    assert run(name, path, callbacks=[lambda progress: pytest.fail("a step")], resume=True) == expected
    assert path.read_bytes() == bits


def test_patience_ends_the_run_of_the_table_early():
    assert len(run("patience")[0]["epoch_losses"]) < 4


def test_a_run_may_continue_for_more_epochs(tmp_path):
    run("DyLoRA", tmp_path / "checkpoint.npz", epochs=2)
    assert run("DyLoRA", tmp_path / "checkpoint.npz", resume=True) == run("DyLoRA")


def test_ctrl_c_saves_the_step_and_a_crash_loses_at_most_an_epoch(tmp_path):
    for how, error, first in [(ctrl_c, KeyboardInterrupt, 11), (crash, KeyError, 8)]:  # 7 steps per epoch
        seen = []
        with pytest.raises(error):
            run("LoRA", tmp_path / "c.npz", callbacks=[stop_at(10, how)])
        run("LoRA", tmp_path / "c.npz", callbacks=[lambda progress, seen=seen: seen.append(progress)], resume=True)
        assert [(each.step, each.epoch) for each in seen] == [(step, 1 + (step - 1) // 7) for step in range(first, 29)]


@pytest.mark.parametrize("step", [1, 2])
def test_a_resumed_run_goes_back_to_the_parameters_of_the_last_finite_loss(tmp_path, step):
    def diverge(callbacks=(), **options):
        model = lora()
        with pytest.raises((NonFiniteError, KeyboardInterrupt)) as stopped:
            fit(model, (X, T), MeanSquaredError(), SGD(1e90), 9, 20, rng=4, callbacks=callbacks, **options)
        return model.get_parameters().tobytes(), str(stopped.value)

    expected = diverge()
    assert expected[1].startswith("step 3, ")
    diverge([stop_at(step, ctrl_c)], checkpoint=tmp_path / "c.npz")
    assert diverge(checkpoint=tmp_path / "c.npz", resume=True) == expected


def test_without_resume_a_run_starts_anew(tmp_path):
    path = tmp_path / "checkpoint.npz"
    run("LoRA", path, epochs=1)
    assert run("LoRA", path, resume=False) == run("LoRA")


def test_a_run_that_is_resumed_without_a_file_starts_at_the_beginning(tmp_path):
    assert run("LoRA", tmp_path / "none.npz", resume=True) == run("LoRA")


CHANGES = {
    "batch_size": lambda: {"batch_size": 4},
    "rows_per_step": lambda: {"accumulate": 2},
    "shuffle": lambda: {"shuffle": False},
    "data": lambda: {"data": (X, T + 1)},
    "data ": lambda: {"weights": WEIGHTS},
    "validation": lambda: {"validation": VALIDATION},
    "patience": lambda: {"validation": VALIDATION, "patience": 3},
    "schedule": lambda: {"schedule": CosineDecay()},
    "groups": lambda: {"groups": {"*.matrix_b": 2.0}},
    "clip_norm": lambda: {"clip_norm": 1.0},
    "optimizer": lambda: {"optimizer": Momentum(0.05)},
    "rank_schedule": lambda: {"rank_schedule": rank_per_row},
    "sorted_start": lambda: {"rank_schedule": SortedStart(5)},
    "rng": lambda: {"rng": np.random.Generator(np.random.MT19937(4))},
    "model": lambda: {"model": dylora(alpha=1.0)},
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_checkpoint_of_another_run_is_refused_before_the_first_step(tmp_path, name):
    def call(**changes):
        model = changes.pop("model", None) or dylora()
        data, optimizer = changes.pop("data", (X, T)), changes.pop("optimizer", None) or Adam(0.05)
        size = changes.pop("batch_size", 3)
        options = {"rng": np.random.default_rng(4), "checkpoint": tmp_path / "c.npz"} | changes
        before = model.get_parameters()
        try:
            return fit(model, data, MeanSquaredError(), optimizer, 1, size, **options)
        except ArgumentError:
            assert np.array_equal(model.get_parameters(), before)
            assert not optimizer.get_state()
            raise

    call()
    bits = (tmp_path / "c.npz").read_bytes()
    with pytest.raises(ArgumentError, match=f"belongs to a different training run: .*{name.strip()} is"):
        call(resume=True, **CHANGES[name]())
    assert (tmp_path / "c.npz").read_bytes() == bits


def test_a_different_loss_is_refused(tmp_path):
    options = {"checkpoint": tmp_path / "c.npz", "rng": 0}
    fit(lora(), (X, T), Huber(), Adam(), 1, 5, **options)
    with pytest.raises(ArgumentError, match=r"loss is .*'1\.0'.* in the file"):
        fit(lora(), (X, T), Huber(2.0), Adam(), 1, 5, resume=True, **options)


@pytest.mark.parametrize("path", ["", 3, b"c.npz\0", None])
def test_a_path_that_is_none_is_refused_before_the_first_step(path):
    with pytest.raises(ArgumentError, match="checkpoint"):
        run("LoRA", path, callbacks=[lambda progress: pytest.fail("a step")], resume=path is None)


def test_a_folder_that_is_missing_is_noticed_before_the_first_step(tmp_path):
    with pytest.raises(OSError):  # noqa: PT011 (its type depends on the system)
        run("LoRA", tmp_path / "none" / "c.npz", callbacks=[lambda progress: pytest.fail("a step")])


def test_a_damaged_file_changes_nothing(tmp_path):
    path = tmp_path / "c.npz"
    run("patience", path, epochs=2)
    bits = bytearray(path.read_bytes())
    bits[len(bits) // 2] ^= 64
    path.write_bytes(bits)
    model, optimizer, random = lora(), Adam(3.0), np.random.default_rng(4)
    before = model.get_parameters()
    options = {"validation": VALIDATION, "patience": 1, "rng": random, "checkpoint": path, "resume": True}
    with pytest.raises(FormatError):
        fit(model, (X, T), MeanSquaredError(), optimizer, 4, 3, **options)
    assert np.array_equal(model.get_parameters(), before)
    assert not optimizer.get_state()
    assert random.bit_generator.state == np.random.default_rng(4).bit_generator.state


@pytest.mark.parametrize("kind", ["before/", "best/", "optimizer/"])
@pytest.mark.parametrize("fault", ["shape", "name"])
def test_an_array_that_fits_no_parameter_changes_nothing(tmp_path, kind, fault):
    path = tmp_path / "c.npz"
    run("patience", path, epochs=2)
    header, arrays = _archive.read(path)
    key = next(key for key in arrays if key.startswith(kind))
    array = arrays.pop(key)
    arrays[key if fault == "shape" else key.replace("matrix", "factor")] = array[:, :0] if fault == "shape" else array
    _archive.write(path, header, arrays)
    model, optimizer = lora(), Adam(3.0)
    before = model.get_parameters()
    options = {"validation": VALIDATION, "patience": 1, "rng": np.random.default_rng(4)}
    with pytest.raises(FormatError, match="is damaged"):
        fit(model, (X, T), MeanSquaredError(), optimizer, 4, 3, **options, checkpoint=path, resume=True)
    assert np.array_equal(model.get_parameters(), before)
    assert not optimizer.get_state()


def test_ranks_that_adapters_draw_themselves_cannot_be_resumed(tmp_path):
    with pytest.raises(ArgumentError, match="rank_schedule must return a rank, got None: the checkpoint lacks"):
        run("DyLoRA", tmp_path / "c.npz", rank_schedule=lambda adapters, rng, rows: None)
    run("LoRA", tmp_path / "c.npz", rank_schedule=lambda adapters, rng, rows: None)  # there are no adapters with ranks


def test_a_run_without_a_checkpoint_computes_no_digests(monkeypatch):
    monkeypatch.setattr("lora_np.training.minibatches.fingerprint", lambda model: pytest.fail("a digest"))
    run("LoRA")


def test_a_loss_that_is_not_finite_does_not_replace_the_checkpoint(tmp_path):
    path = tmp_path / "c.npz"
    run("LoRA", path, epochs=1)
    bits = path.read_bytes()

    def overflow(progress):
        progress.model.set_parameters(progress.model.get_parameters() * 1e200)

    with pytest.raises(NonFiniteError):
        run("LoRA", path, callbacks=[overflow], resume=True)
    assert path.read_bytes() == bits
