"""Copies of adapters whose branches something has changed: `with_branches`."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from lora_np import (
    ArgumentError,
    DenseLayer,
    DyLoRAAdapter,
    InvalidOperationError,
    LoRALayer,
    MultiLoRAAdapter,
    NotSupportedError,
)
from lora_np.base import pending
from tests.kinds import ALPHA, IN, KINDS, OUT, RANK, batch, randomised, snapshot


@pytest.fixture(params=[kind for kind in KINDS if kind != "vera"])
def kind(request):
    return request.param


def doubled(branch):
    return LoRALayer.from_factors(2 * branch.matrix_a, branch.matrix_b, branch.alpha, scaling=branch.scaling_rule)


def test_every_branch_is_changed_in_a_copy(adapter):
    before = snapshot(adapter)
    twin = adapter.with_branches(doubled)
    assert snapshot(adapter) == before
    assert type(twin) is type(adapter)
    assert twin.base_layer is adapter.base_layer
    assert twin.is_base_layer_frozen is adapter.is_base_layer_frozen
    for name, array in adapter.named_parameters(frozen=True).items():
        expected = 2 * array if name.endswith("matrix_a") else array
        assert_allclose(twin.named_parameters(frozen=True)[name], expected, rtol=1e-15)


def test_the_branch_itself_may_be_shared(adapter, x):
    twin = adapter.with_branches(lambda branch: branch)
    assert twin.lora_layer is adapter.lora_layer
    assert_allclose(twin.predict(x), adapter.predict(x), rtol=1e-15)


def test_the_copy_starts_without_a_pending_pass(adapter, x, dy):
    adapter.forward(x)
    twin = adapter.with_branches(doubled)
    with pytest.raises(InvalidOperationError):
        twin.backward(dy)
    adapter.backward(dy)


def test_the_copy_is_in_the_same_mode(adapter):
    assert adapter.with_branches(doubled).is_training
    twin = adapter.eval().with_branches(doubled)
    assert not any(layer.is_training for layer in twin.walk().values())


@pytest.mark.parametrize(
    "change",
    [
        lambda branch: LoRALayer(IN + 1, OUT, 1),
        lambda branch: LoRALayer(IN, OUT + 1, 1),
        lambda branch: LoRALayer(IN, OUT, 1, dtype=np.float32),
    ],
    ids=["input-size", "output-size", "dtype"],
)
def test_a_branch_that_does_not_fit_is_refused(adapter, change):
    before = snapshot(adapter)
    with pytest.raises(ArgumentError, match=f"branch must be {IN} -> {OUT} in float64, got LoRALayer"):
        adapter.with_branches(change)
    assert snapshot(adapter) == before


def test_vera_has_no_pair_of_trained_factors():
    adapter = KINDS["vera"](DenseLayer(IN, OUT), RANK, ALPHA, rng=0)
    with pytest.raises(NotSupportedError, match=f"{adapter.layer_name}.*VeRAAdapter"):
        adapter.with_branches(doubled)


# ---------------------------------------------------------------- DyLoRA: the ranks follow


def dylora(active_ranks, weights):
    return randomised(DyLoRAAdapter(DenseLayer(IN, 4), 4, active_ranks, rank_distribution=weights, mode="frozen", rng=0))


@pytest.mark.parametrize(
    ("rank", "active_ranks", "distribution"),
    [
        (4, (1, 2, 4), (0.125, 0.25, 0.625)),
        (3, (1, 2, 3), (0.125, 0.25, 0.625)),
        (2, (1, 2), (0.125, 0.875)),
        (1, (1,), (1.0,)),
    ],
)
def test_a_new_rank_replaces_the_active_ranks_above_it(rank, active_ranks, distribution):
    adapter = dylora([1, 2, 4], [1, 2, 5])
    branch = LoRALayer.from_factors(batch(IN, rank), batch(rank, 4))
    twin = adapter.with_branches(lambda _: branch)
    assert (twin.max_rank, twin.active_ranks, twin.rank_distribution) == (rank, active_ranks, distribution)
    assert twin.current_deployment_rank == active_ranks[-1]
    assert twin.mode == "frozen"
    twin.forward(batch(3, IN), rank=active_ranks[-1])
    twin.backward(batch(3, 4))
    assert adapter.active_ranks == (1, 2, 4)


def test_the_copy_of_a_seeded_adapter_draws_the_same_ranks_each_time():
    def drawn():
        twin, ranks = dylora([1, 2, 4], None).with_branches(doubled), []
        for _ in range(30):
            twin.forward(batch(3, IN))
            twin.backward(batch(3, 4))
            ranks.append(pending(twin).parts["lora.matrix_b"][0].stop)
        return ranks

    assert drawn() == drawn()


def test_a_copy_draws_random_numbers_separately():
    adapter = dylora([1, 2, 4], None)
    before = snapshot(adapter)
    adapter.with_branches(doubled).forward(batch(3, IN))
    assert snapshot(adapter) == before
    tasks = MultiLoRAAdapter(DenseLayer(IN, 4), "first", 1, rng=0)
    before = snapshot(tasks)
    tasks.with_branches(doubled).add_task("second", 1)
    assert snapshot(tasks) == before


def test_a_branch_whose_rank_exceeds_the_sizes_is_refused():
    branch = LoRALayer.from_factors(batch(IN, 9), batch(9, 4))
    with pytest.raises(ArgumentError, match=r"max_rank must be at most .* = 4, got 9"):
        dylora([1, 2, 4], None).with_branches(lambda _: branch)


def test_a_deployment_rank_that_remains_active_is_kept():
    adapter = dylora([1, 2, 4], None)
    adapter.set_deployment_rank(1)
    branch = LoRALayer.from_factors(batch(IN, 3), batch(3, 4))
    assert adapter.with_branches(lambda _: branch).current_deployment_rank == 1


def test_a_branch_of_another_class_is_refused():
    with pytest.raises(ArgumentError, match="LoRALayer"):
        dylora([1, 2, 4], None).with_branches(lambda _: "branch")
