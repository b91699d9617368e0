"""Whole models: the plain spelling of `apply_lora`, what trains, ranks of a model, and unknown containers."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from lora_np import (
    SGD,
    Adam,
    ArgumentError,
    DenseLayer,
    DoRAAdapter,
    DyLoRAAdapter,
    FullyConnectedLayer,
    InvalidOperationError,
    Layer,
    LoRALayer,
    MeanSquaredError,
    MultiLoRAAdapter,
    NotSupportedError,
    Sequential,
    StandardLoRAAdapter,
    VeRAAdapter,
    apply_lora,
    at_rank,
    find,
    fit,
    merge_in_place,
    relu,
    select_rank,
    select_task,
    trainable_parameters,
    without_adapters,
)
from lora_np.base import Listener, listeners, prefixed
from lora_np.factors.settings import DyLoRASettings
from lora_np.io.peft import apply_peft, save_peft
from lora_np.testing import check_gradients
from tests.kinds import batch, randomised

RANKS = (1, 2, 4)


class Gated(Layer):
    """``y = gate · x + f(x) + g(x)``: a container that the package does not know, with a separate array."""

    parameter_names = ("gate",)

    def __init__(self, first, second, gate=None):
        super().__init__(first.input_size, first.output_size, first.dtype)
        self.first, self.second = first, second
        self.gate = np.linspace(0.5, 1.5, first.input_size) if gate is None else gate

    def apply(self, x, run):
        first, first_cache = self.first.apply(x, run)
        second, second_cache = self.second.apply(x, run)
        return self.gate * x + first + second, (x, first_cache, second_cache)

    def vjp(self, dy, cache, *, parameters=True, inputs=True):
        x, *caches = cache
        dx, gradients = self.gate * dy, {}
        if parameters:
            gradients["gate"] = (dy * x).reshape(-1, x.shape[-1]).sum(axis=0)
        for (name, child), child_cache in zip(self.children().items(), caches, strict=True):
            child_dx, own = child.vjp(dy, child_cache, parameters=parameters and name not in self.frozen)
            dx, gradients = dx + child_dx, gradients | prefixed(name, own)
        return dx, gradients

    def children(self):
        return {"first": self.first, "second": self.second}

    def with_children(self, changed):
        children = self.children() | dict(changed)
        return Gated(children["first"], children["second"], self.gate)

    def estimate_flops(self):
        return self.first.estimate_flops() + self.second.estimate_flops() + 3 * self.input_size


def model(seed=0):
    """A dense layer, an unknown container of a dense layer and a stack, and a head."""
    inner = Sequential({"in": DenseLayer(6, 6, relu, rng=seed + 1), "out": FullyConnectedLayer(6, 6, rng=seed + 2)})
    gated = Gated(DenseLayer(6, 6, rng=seed + 3), inner)
    return Sequential({"embed": DenseLayer(5, 6, rng=seed), "body": gated, "head": DenseLayer(6, 4, rng=seed + 4)})


DENSE = ["embed", "body.first", "body.second.in", "body.second.out", "head"]

CHOICES = {
    StandardLoRAAdapter: {"rank": 2, "scaling": "rslora"},
    DyLoRAAdapter: {"max_rank": 4, "active_ranks": RANKS, "mode": "frozen"},
    MultiLoRAAdapter: {"default_task_name": "a", "default_rank": 2},
    DoRAAdapter: {"rank": 2, "alpha": 3.0},
    VeRAAdapter: {"rank": 3},
}


# ---------------------------------------------------------------- the plain spelling


@pytest.mark.parametrize("kind", CHOICES, ids=lambda kind: kind.__name__)
def test_a_class_of_adapter_with_its_arguments(kind):
    adapted = apply_lora(model(), kind, **CHOICES[kind], rng=0)
    assert list(find(adapted, kind)) == DENSE
    by_hand = apply_lora(model(), lambda layer: kind(layer, **CHOICES[kind]))
    assert [repr(a) for a in find(adapted, kind).values()] == [repr(a) for a in find(by_hand, kind).values()]


def test_each_layer_gets_a_separate_generator():
    adapted = apply_lora(model(), DyLoRAAdapter, max_rank=4, active_ranks=RANKS, rng=0)
    arrays = [adapter.lora_layer.matrix_a for adapter in find(adapted, DyLoRAAdapter).values() if adapter.input_size == 6]
    assert len(arrays) == 4
    assert len({array.tobytes() for array in arrays}) == 4
    generators = [adapter._rng for adapter in find(adapted, DyLoRAAdapter).values()]
    assert len({id(generator) for generator in generators}) == 5
    assert len({generator.random() for generator in generators}) == 5


def test_one_seed_gives_one_model_whatever_the_targets_are_called():
    once, again = (apply_lora(model(), StandardLoRAAdapter, rank=2, rng=7) for _ in range(2))
    assert_array_equal(once.get_parameters(), again.get_parameters())
    other = apply_lora(model(), StandardLoRAAdapter, rank=2, rng=8)
    assert (once.get_parameters() != other.get_parameters()).any()


def test_seeds_are_drawn_in_the_order_of_the_layers():
    adapted = apply_lora(model(), StandardLoRAAdapter, rank=2, rng=7)
    random = np.random.default_rng(7)
    for adapter in find(adapted, StandardLoRAAdapter).values():
        expected = StandardLoRAAdapter(adapter.base_layer, 2, rng=int(random.integers(2**63)))
        assert_array_equal(adapter.lora_layer.matrix_a, expected.lora_layer.matrix_a)


def test_an_argument_that_does_not_suit_a_layer_names_its_path():
    with pytest.raises(ArgumentError, match=r"^head: max_rank must .*5"):
        apply_lora(model(), DyLoRAAdapter, max_rank=5, active_ranks=[1, 5])
    with pytest.raises(ArgumentError, match=r"^embed: .*unexpected keyword argument 'ranks'"):
        apply_lora(model(), StandardLoRAAdapter, ranks=2)


@pytest.mark.parametrize("arguments", [{"rng": 0}, {"rank": 2}], ids=str)
def test_a_function_makes_its_own_choices(arguments):
    with pytest.raises(ArgumentError, match="adapter must be a class if rng or other arguments are given"):
        apply_lora(model(), lambda layer: StandardLoRAAdapter(layer, 2), **arguments)


def test_the_type_of_the_model_is_kept():
    assert type(apply_lora(model(), StandardLoRAAdapter, rank=1)) is Sequential
    assert type(apply_lora(model()["body"], StandardLoRAAdapter, rank=1)) is Gated
    assert type(apply_lora(DenseLayer(3, 2), StandardLoRAAdapter, rank=1)) is StandardLoRAAdapter


# ---------------------------------------------------------------- what trains


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ([], set()),
        (["head"], {"head.weight", "head.bias"}),
        (["body.second.out"], {"body.second.out.weight", "body.second.out.bias"}),
        (
            ["body"],
            {"body.gate", *(f"body.{p}.{a}" for p in ("first", "second.in", "second.out") for a in ("weight", "bias"))},
        ),
    ],
    ids=str,
)
def test_nothing_trains_but_the_adapters_and_what_train_names(train, expected):
    adapted = randomised(apply_lora(model(), StandardLoRAAdapter, rank=1, targets=["embed"], train=train, rng=0))
    assert set(adapted.named_parameters()) == {"embed.lora.matrix_a", "embed.lora.matrix_b"} | expected
    before = {name: array.copy() for name, array in adapted.named_parameters(frozen=True).items()}
    fit(adapted, (batch(8, 5), batch(8, 4)), MeanSquaredError(), Adam(0.01), 2, 4, rng=0)
    moved = {n for n, array in adapted.named_parameters(frozen=True).items() if (array != before[n]).any()}
    assert moved == set(adapted.named_parameters())


def test_layers_that_train_are_not_adapted_unless_targets_ask_for_it():
    adapted = apply_lora(model(), StandardLoRAAdapter, rank=1, train=["head", "body.second"], rng=0)
    assert list(find(adapted, StandardLoRAAdapter)) == ["embed", "body.first"]
    with pytest.raises(ArgumentError, match="train must not name layers to adapt, got 'head'"):
        apply_lora(model(), StandardLoRAAdapter, rank=1, targets=["head"], train=["head"])


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("head", "train must be a sequence of layer names, got 'head'"),
        (3, "train must be a sequence of layer names, got 3"),
        (["hed"], r"train must name layers of the model, which are \['embed', .*'head'\]; got 'hed'"),
    ],
    ids=str,
)
def test_bad_names_of_layers_to_train(train, message):
    with pytest.raises(ArgumentError, match=message):
        apply_lora(model(), StandardLoRAAdapter, rank=1, targets=["embed"], train=train)


def test_arrays_of_a_container_are_frozen_whether_it_cares_or_not():
    adapted = randomised(apply_lora(model(), StandardLoRAAdapter, rank=2, rng=0))
    gate = adapted["body"].gate.copy()
    for step in ("update_parameters", "optimizer"):
        adapted.forward(batch(8, 5))
        adapted.backward(batch(8, 4))
        assert "body.gate" in adapted.gradients  # this container computes it all the same
        if step == "optimizer":
            adapted.apply_updates(Adam(0.1).updates(adapted))
        else:
            adapted.update_parameters(0.1)
    assert_array_equal(adapted["body"].gate, gate)
    with pytest.raises(ArgumentError, match=r"no trainable parameter 'body\.gate'"):
        adapted.apply_updates({"body.gate": gate})


# ---------------------------------------------------------------- containers that the package does not know


@pytest.mark.parametrize(
    "kind", [StandardLoRAAdapter, DyLoRAAdapter, MultiLoRAAdapter, VeRAAdapter], ids=lambda k: k.__name__
)
def test_gradients_through_an_unknown_container(kind):
    adapted = randomised(apply_lora(model(), kind, **CHOICES[kind] | {"rng": 0}, train=[]))
    adapted["body"].frozen = frozenset()  # all arrays of the container are checked as well
    check_gradients(adapted.eval(), batch(4, 5), active_only=kind is DyLoRAAdapter)


def test_one_rank_for_every_layer_of_an_unknown_container_and_only_its_components_move():
    adapted = randomised(apply_lora(model(), DyLoRAAdapter, max_rank=4, active_ranks=RANKS, mode="frozen", rng=0))
    optimizer, before = Adam(0.1), adapted.clone()
    for rank in (4, 2):  # the moments of the first step must not move a component in the second
        kept = {name: array.copy() for name, array in adapted.named_parameters().items()}
        adapted.forward(batch(8, 5), rank=rank)
        adapted.backward(batch(8, 4))
        adapted.apply_updates(optimizer.updates(adapted))
        block = slice({4: 2, 2: 1}[rank], rank)
        for name, array in adapted.named_parameters().items():
            components = array.T if name.endswith("matrix_a") else array
            old = kept[name].T if name.endswith("matrix_a") else kept[name]
            moved = np.flatnonzero((components != old).any(axis=1)).tolist()
            assert moved == list(range(4))[block], (rank, name)
    assert before.parameter_count == adapted.parameter_count


def test_select_rank_and_task_reach_an_unknown_container():
    adapted = randomised(apply_lora(model(), DyLoRAAdapter, max_rank=4, active_ranks=RANKS, rng=0))
    assert select_rank(adapted, 2) == 5
    assert {adapter.current_deployment_rank for adapter in find(adapted, DyLoRAAdapter).values()} == {2}
    assert_array_equal(adapted.predict(batch(3, 5)), adapted.predict(batch(3, 5), rank=2))
    with pytest.raises(ArgumentError, match=r"^embed: rank must be one of the active ranks \(1, 2, 4\), got 3$"):
        select_rank(adapted, 3)
    assert {adapter.current_deployment_rank for adapter in find(adapted, DyLoRAAdapter).values()} == {2}
    with pytest.raises(InvalidOperationError, match="has no DyLoRAAdapter or task whose rank could be selected"):
        select_rank(model(), 2)
    tasks = apply_lora(model(), MultiLoRAAdapter, default_task_name="a", default_rank=1, rng=0)
    assert select_task(tasks, "a") == 5


def test_a_rank_that_one_layer_lacks_is_selected_nowhere():
    first, second = (DyLoRAAdapter(DenseLayer(4, 4), 3, ranks) for ranks in ([1, 2, 3], [1, 3]))
    with pytest.raises(ArgumentError, match=r"^1: rank must"):
        select_rank(Sequential([first, second]), 2)
    assert first.current_deployment_rank == 3


def test_an_unknown_container_is_merged_and_stripped():
    plain = model()
    adapted = randomised(apply_lora(plain, StandardLoRAAdapter, rank=2, rng=0))
    x = batch(4, 5)
    assert_array_equal(without_adapters(adapted).predict(x), apply_lora(plain, StandardLoRAAdapter, rank=2).predict(x))
    assert without_adapters(adapted).parameter_count == plain.parameter_count
    expected, name = adapted.predict(x), adapted["body"].layer_name
    assert merge_in_place(adapted) == 5
    assert_allclose(adapted.predict(x), expected, rtol=1e-12)
    assert not find(adapted, StandardLoRAAdapter)
    assert adapted["body"].layer_name == name


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), Layer.clone])
def test_an_adapted_container_is_copied_whole(twin_of):
    adapted = randomised(
        apply_lora(model(), DyLoRAAdapter, max_rank=4, active_ranks=RANKS, train=["head"], targets=["embed"])
    )
    twin = twin_of(adapted)
    assert_array_equal(twin.predict(batch(3, 5), rank=2), adapted.predict(batch(3, 5), rank=2))
    assert set(twin.named_parameters()) == set(adapted.named_parameters())


# ---------------------------------------------------------------- branches and settings


@pytest.mark.parametrize("kind", [StandardLoRAAdapter, DyLoRAAdapter, DoRAAdapter], ids=lambda kind: kind.__name__)
def test_around_a_branch(kind):
    base, branch = DenseLayer(5, 4, rng=0), randomised(LoRALayer(5, 4, 3, 2.0, rng=0))
    choices = {"active_ranks": [1, 3], "mode": "frozen", "rank_distribution": [0.25, 0.75]} if kind is DyLoRAAdapter else {}
    adapter = kind.around(base, branch, False, **choices)
    assert adapter.base_layer is base
    assert adapter.lora_layer is branch
    assert not adapter.is_base_layer_frozen
    check_gradients(adapter.eval(), batch(4, 5), active_only=kind is DyLoRAAdapter)
    if kind is DyLoRAAdapter:
        assert (adapter.active_ranks, adapter.mode, adapter.max_rank) == ((1, 3), "frozen", 3)
        assert adapter.rank_distribution == (0.25, 0.75)
        assert adapter.current_deployment_rank == 3
    with pytest.raises(ArgumentError, match=r"branch must be 5 -> 4 in float64, got LoRALayer\(5 -> 3"):
        kind.around(base, LoRALayer(5, 3, 1), **choices)
    with pytest.raises(ArgumentError, match="branch must be a LoRALayer"):
        kind.around(base, DenseLayer(5, 4), **choices)


def test_dora_around_a_branch_treats_the_norm_as_requested():
    base, branch = DenseLayer(5, 4, rng=0), LoRALayer(5, 4, 2, rng=0)
    assert DoRAAdapter.around(base, branch).norm_gradient
    adapter = DoRAAdapter.around(base, branch, norm_gradient=False)
    assert not adapter.norm_gradient
    assert not DoRAAdapter.from_config(adapter.config()).norm_gradient


def test_vera_has_no_pair_of_trained_factors():
    with pytest.raises(NotSupportedError, match="VeRAAdapter is not a pair of trained factors"):
        VeRAAdapter.around(DenseLayer(5, 4), LoRALayer(5, 4, 1))


@pytest.mark.parametrize("kind", CHOICES, ids=lambda kind: kind.__name__)
def test_an_adapter_with_another_base(kind):
    adapter = randomised(kind(DenseLayer(5, 4, rng=0), **CHOICES[kind]))
    base, x = DenseLayer(5, 4, rng=9), batch(3, 5)
    twin = adapter.with_children({"base": base})
    assert twin.base_layer is base
    assert twin.lora_layer is adapter.lora_layer
    assert adapter.base_layer is not base
    if kind is not DoRAAdapter:
        assert_allclose(twin.predict(x) - base.predict(x), adapter.predict(x) - adapter.base_layer.predict(x), rtol=1e-9)
    with pytest.raises(ArgumentError, match=r"changed must name children of .*, got 'bse'"):
        adapter.with_children({"bse": base})


@pytest.mark.parametrize("kind", [StandardLoRAAdapter, DyLoRAAdapter, DoRAAdapter], ids=lambda kind: kind.__name__)
def test_an_adapter_with_another_branch(kind):
    adapter = randomised(kind(DenseLayer(5, 4, rng=0), **CHOICES[kind]))
    branch = randomised(LoRALayer(5, 4, 4, rng=9))
    twin = adapter.with_children({"lora": branch})
    assert twin.lora_layer is branch
    assert twin.base_layer is adapter.base_layer
    assert adapter.lora_layer is not branch


@pytest.mark.parametrize("base", [DenseLayer(4, 4), DenseLayer(5, 3), DenseLayer(5, 4, dtype=np.float32)], ids=repr)
def test_a_base_that_does_not_fit_is_refused(base):
    adapter = StandardLoRAAdapter(DenseLayer(5, 4), 2)
    with pytest.raises(ArgumentError, match="base must be 5 -> 4 in float64, got DenseLayer"):
        adapter.with_children({"base": base})


def test_a_branch_among_the_changed_children():
    adapter, x = MultiLoRAAdapter(DenseLayer(5, 4, rng=0), "a.b", 2, rng=0), batch(3, 5)
    adapter.add_task("c", 1)
    branch = randomised(LoRALayer(5, 4, 3))
    twin = adapter.with_children({"tasks.a.b": branch})
    assert twin.get_task_rank("a.b") == 3
    assert adapter.get_task_rank("a.b") == 2
    assert twin.get_task_adapter("c") is adapter.get_task_adapter("c")
    assert_allclose(twin.predict(x) - adapter.predict(x), branch.predict(x), rtol=1e-12)


class Halved(Gated, Listener):
    """A container that itself reads the rank of a pass: only so many of its inputs pass through the gate."""

    listens_to = "rank"

    def apply(self, x, run):
        kept = np.arange(x.shape[-1]) < (self.input_size if run.rank is None else run.rank)
        return super().apply(x * kept, run)

    def with_children(self, changed):
        children = self.children() | dict(changed)
        return Halved(children["first"], children["second"], self.gate)


def test_a_layer_of_a_user_may_read_the_run_too():
    layer, x = Sequential({"halved": Halved(DenseLayer(4, 4, rng=0), DenseLayer(4, 4, rng=1))}), batch(3, 4)
    assert list(listeners(layer)) == ["halved"]
    cut = x.copy()
    cut[:, 2:] = 0
    assert_array_equal(layer.predict(x, rank=2), layer.predict(cut))
    assert (layer.predict(x) != layer.predict(cut)).any()
    layer.forward(x, rank=2)
    layer.backward(x)
    layer.update_parameters(0.1)


def test_peft_folders_of_an_unknown_container(tmp_path):
    plain, x = model(), batch(3, 5)
    adapted = randomised(apply_lora(plain, StandardLoRAAdapter, rank=2, targets=["in", "first", "head"], rng=0))
    save_peft(tmp_path / "adapter", adapted)
    assert_allclose(apply_peft(plain, tmp_path / "adapter").predict(x), adapted.predict(x), rtol=1e-6)


def test_a_slice_at_a_rank_is_a_plain_layer():
    adapter = randomised(DyLoRAAdapter(DenseLayer(5, 4, rng=0), 4, RANKS, scaling="paper", rng=0))
    plain, x = StandardLoRAAdapter.around(adapter.base_layer, at_rank(adapter, 2)), batch(3, 5)
    assert_allclose(plain.predict(x), adapter.predict(x, rank=2), rtol=1e-13)
    assert plain.rank == 2
    with pytest.raises(ArgumentError, match=r"active ranks \(1, 2, 4\), got 3"):
        at_rank(adapter, 3)


def test_settings_come_back_from_json_and_make_the_same_adapter():
    adapter = DyLoRAAdapter(DenseLayer(5, 4), 4, RANKS, 3.0, mode="frozen", rank_distribution=[1, 2, 1])
    adapter.set_deployment_rank(2)
    settings = DyLoRASettings.of(adapter)
    assert DyLoRASettings.from_json(settings.to_json()) == settings
    twin = settings.around(adapter.base_layer, adapter.lora_layer)
    assert DyLoRASettings.of(twin) == settings
    assert twin.current_deployment_rank == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"active_ranks": (1, 4, 2)}, r"active_ranks must be strictly ascending, got \(1, 4, 2\)"),
        ({"rank_distribution": (0.5, 0.5)}, "rank_distribution must have one probability for each of 3 ranks"),
        ({"mode": "half"}, "mode must be one of 'full', 'frozen', got 'half'"),
        ({"scaling": "min"}, "scaling must be one of 'max', 'paper', 'rslora', got 'min'"),
        ({"alpha": -1.0}, r"alpha must be at least 0, got -1\.0"),
        ({"alpha": "3"}, "alpha must be a real number, got '3'"),
        ({"current_deployment_rank": 3}, r"current_deployment_rank must be one of the active ranks \[1, 2, 4\], got 3"),
    ],
    ids=str,
)
def test_bad_settings_are_refused(change, message):
    settings = DyLoRASettings.of(DyLoRAAdapter(DenseLayer(5, 4), 4, RANKS))
    with pytest.raises(ArgumentError, match=message):
        replace(settings, **change)


def test_settings_for_a_branch_of_a_lower_rank_are_refused():
    settings = DyLoRASettings.of(DyLoRAAdapter(DenseLayer(5, 4), 4, RANKS))
    settings.check_branch(LoRALayer(5, 4, 4))
    with pytest.raises(ArgumentError, match="active_ranks must be at most max_rank = 3"):
        settings.check_branch(LoRALayer(5, 4, 3))


# ---------------------------------------------------------------- counts at a rank


def test_the_table_at_a_rank():
    adapter = DyLoRAAdapter(DenseLayer(64, 10), 8, [2, 4, 8])
    for rank in (2, 4, 8):
        table = trainable_parameters(adapter, rank=rank)
        assert table.trainable == rank * 74
        assert table.total == 650 + rank * 74
        assert table.share == table.trainable / table.total
        assert f"{rank}: {table.share:.1%}" in repr(adapter)
    assert trainable_parameters(adapter).trainable == 8 * 74
    assert (64, 2) in [row.shape for row in trainable_parameters(Sequential([adapter]), rank=2).rows]
    with pytest.raises(ArgumentError, match="active ranks"):
        trainable_parameters(adapter, rank=3)
    with pytest.raises(ArgumentError, match="rank must be None"):
        trainable_parameters(model(), rank=1)


# ---------------------------------------------------------------- attributes


@pytest.mark.parametrize("name", ["training_rank", "row_quantile", "deployment_rank"])
def test_a_rank_is_not_set_under_another_name(name):
    adapter = DyLoRAAdapter(DenseLayer(5, 4), 4, RANKS)
    with pytest.raises(AttributeError, match=f"DyLoRAAdapter has no settable attribute '{name}'"):
        setattr(adapter, name, 2)
    assert not hasattr(adapter, name)


def test_a_task_is_not_set_under_another_name():
    adapter = MultiLoRAAdapter(DenseLayer(5, 4), "a", 2)
    with pytest.raises(AttributeError, match="MultiLoRAAdapter has no settable attribute 'task'"):
        adapter.task = "a"
    adapter.current_task = "a"
    adapter.layer_name = "mine"


def test_plain_gradient_descent_of_an_adapted_container_lowers_the_loss():
    adapted = apply_lora(model(), DyLoRAAdapter, max_rank=4, active_ranks=RANKS, train=["head"], targets=["embed"], rng=0)
    x, y = batch(32, 5), batch(32, 4, seed=3)
    history = fit(adapted, (x, y), MeanSquaredError(), SGD(0.05), 20, 8, rng=0)
    assert history.epoch_losses[-1] < 0.8 * history.epoch_losses[0]
    assert len(set(history.ranks)) == 3
