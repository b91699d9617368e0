"""Whole models: adapting, merging, selecting tasks, counting."""

import re

import numpy as np
import pytest

from lora_np import (
    ActivationLayer,
    ArgumentError,
    ArgumentNullError,
    DenseLayer,
    DoRAAdapter,
    DyLoRAAdapter,
    FullyConnectedLayer,
    InvalidOperationError,
    LoRAAdapterBase,
    LoRALayer,
    MultiLoRAAdapter,
    NotSupportedError,
    Sequential,
    StandardLoRAAdapter,
    VeRAAdapter,
    apply_lora,
    find,
    has_adapters,
    has_multi_lora_adapters,
    merge_in_place,
    relu,
    select_rank,
    select_task,
    softmax,
    tanh,
    trainable_parameters,
    without_adapters,
)
from lora_np.models.adapting import apply_adapters

X = np.random.default_rng(0).standard_normal((5, 6))

FACTORIES = {
    "standard": lambda layer: StandardLoRAAdapter(layer, 2, rng=0),
    "dylora": lambda layer: DyLoRAAdapter(layer, 2, [1, 2], rng=0),
    "multilora": lambda layer: MultiLoRAAdapter(layer, "task", 2, rng=0),
    "dora": lambda layer: DoRAAdapter(layer, 2, rng=0),
    "vera": lambda layer: VeRAAdapter(layer, 2, rng=0),
}
standard = FACTORIES["standard"]

each_factory = pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES.keys())


def network():
    """Dense layers at 0, encoder.in, encoder.deep.0, encoder.deep.out and head."""
    deep = Sequential({"0": FullyConnectedLayer(4, 4, tanh, rng=1), "out": DenseLayer(4, 5, rng=2)})
    encoder = Sequential({"in": DenseLayer(6, 4, relu, rng=3), "deep": deep})
    return Sequential({"0": DenseLayer(6, 6, rng=4), "encoder": encoder, "head": DenseLayer(5, 3, softmax, rng=5)})


ALL = ["0", "encoder.in", "encoder.deep.0", "encoder.deep.out", "head"]


def adapters(model):
    return {path: layer for path, layer in model.walk().items() if isinstance(layer, LoRAAdapterBase)}


def randomised(model, seed=1):
    """The model with new random values in every trainable array: no branch adds nothing."""
    model.set_parameters(np.random.default_rng(seed).standard_normal(model.parameter_count))
    return model


def snapshot(model):
    """All of a model that must not change, its structure included."""
    arrays = {name: array.tobytes() for name, array in model.named_parameters(frozen=True).items()}
    return {path: (layer, layer.frozen) for path, layer in model.walk().items()}, arrays


# ---------------------------------------------------------------- which layers are adapted


@pytest.mark.parametrize(
    ("targets", "exclude", "expected"),
    [
        (None, None, ALL),
        (ALL, None, ALL),
        (["head"], None, ["head"]),
        (["0"], None, ["0", "encoder.deep.0"]),
        (["out", "in"], None, ["encoder.in", "encoder.deep.out"]),
        (["deep.0"], None, ["encoder.deep.0"]),
        ("0", None, ["0"]),
        (r"encoder\..*", None, ["encoder.in", "encoder.deep.0", "encoder.deep.out"]),
        (re.compile(r".*\.(in|OUT)", re.IGNORECASE), None, ["encoder.in", "encoder.deep.out"]),
        (None, ["head"], ALL[:-1]),
        (None, r"encoder\..*", ["0", "head"]),
        (None, re.compile(".*0"), ["encoder.in", "encoder.deep.out", "head"]),
        (r"encoder\..*", ["deep.0"], ["encoder.in", "encoder.deep.out"]),
        (None, [], ALL),
    ],
    ids=str,
)
def test_targets_and_exclusions(targets, exclude, expected):
    adapted = apply_lora(network(), standard, targets, exclude)
    assert list(adapters(adapted)) == expected


def test_targets_may_be_an_iterator():
    assert list(adapters(apply_lora(network(), standard, iter(["head"])))) == ["head"]


@pytest.mark.parametrize(
    "names", [["missing"], ["head", "missing"], ["hea"], ["ead"], "hea", "encoder", ["encoder"], ["d.in"], [".*"]], ids=str
)
@pytest.mark.parametrize("argument", ["targets", "exclude"])
def test_a_name_that_matches_nothing_is_an_error_that_lists_the_layers(argument, names):
    with pytest.raises(ArgumentError, match=f"{argument} must match .*{re.escape(str(ALL))}"):
        apply_lora(network(), standard, **{argument: names})


@pytest.mark.parametrize(("targets", "exclude"), [([], None), (["head"], ["head"]), (None, ".*"), (None, ALL)], ids=str)
def test_nothing_left_to_adapt_is_an_error(targets, exclude):
    with pytest.raises(ArgumentError, match="targets must leave at least one of the dense layers"):
        apply_lora(network(), standard, targets, exclude)


@pytest.mark.parametrize(
    "model",
    [ActivationLayer(3, relu), Sequential([ActivationLayer(3, relu)]), LoRALayer(3, 3, 1), standard(DenseLayer(6, 6))],
    ids=["activation", "stack", "branch", "adapter"],
)
def test_a_model_without_dense_layers_is_an_error(model):
    with pytest.raises(ArgumentError, match=r"targets must leave at least one of the dense layers .* to adapt, got"):
        apply_lora(model, standard)


@pytest.mark.parametrize(
    "function",
    [
        lambda model: apply_lora(model, standard),
        without_adapters,
        merge_in_place,
        has_adapters,
        lambda model: select_task(model, "task"),
        lambda model: select_rank(model, 1),
        trainable_parameters,
    ],
)
def test_a_model_must_be_a_layer(function):
    with pytest.raises(ArgumentNullError, match="model"):
        function(None)
    with pytest.raises(ArgumentError, match=r"^model must be a layer, got \[1\]$"):
        function([1])


def test_layers_are_found_by_class():
    with pytest.raises(ArgumentError, match=r"^kind must be a class, got 'DenseLayer'$"):
        find(network(), "DenseLayer")


@pytest.mark.parametrize("names", ["(", "*"])
@pytest.mark.parametrize("argument", ["targets", "exclude"])
def test_a_broken_regular_expression_is_an_error_that_names_the_argument(argument, names):
    with pytest.raises(ArgumentError, match=argument):
        apply_lora(network(), standard, **{argument: names})


@pytest.mark.parametrize("names", [3, [3], [None], b"0", [["head"]]], ids=str)
@pytest.mark.parametrize("argument", ["targets", "exclude"])
def test_names_must_be_strings_or_patterns(argument, names):
    with pytest.raises(ArgumentError, match=f"{argument} must be a regular expression or a sequence of names, got"):
        apply_lora(network(), standard, **{argument: names})


@pytest.mark.parametrize("result", [None, 3, DenseLayer(6, 6)], ids=["none", "number", "layer"])
@pytest.mark.parametrize("model", [network(), DenseLayer(6, 6)], ids=["network", "single"])
def test_a_factory_must_return_an_adapter(model, result):
    with pytest.raises(ArgumentError, match="adapter must return an adapter, got"):
        apply_lora(model, lambda layer: result)


# ---------------------------------------------------------------- what comes out


@each_factory
def test_the_function_is_unchanged_at_the_start(factory):
    model = network()
    np.testing.assert_allclose(apply_lora(model, factory).predict(X), model.predict(X), rtol=1e-13)


@each_factory
def test_only_the_adapters_train(factory):
    adapted = apply_lora(network(), factory, ["in", "head"])
    expected = {f"{path}.{name}" for path, adapter in adapters(adapted).items() for name in adapter.named_parameters()}
    assert set(adapted.named_parameters()) == expected
    assert not any("base" in name for name in expected)


def test_training_changes_only_the_adapters():
    model = network()
    adapted = randomised(apply_lora(model, standard))
    before = model.get_parameters()
    adapted.backward(adapted.forward(X))
    adapted.update_parameters(0.1)
    np.testing.assert_array_equal(model.get_parameters(), before)


@pytest.mark.parametrize("build", [network, lambda: DenseLayer(6, 3, relu), lambda: DenseLayer(6, 3)])
def test_the_given_model_is_not_changed(build):
    model = build()
    before = snapshot(model)
    randomised(apply_lora(model, standard))
    assert snapshot(model) == before


def test_the_new_model_shares_the_arrays_of_the_old_one():
    model = network()
    adapted = apply_lora(model, standard)
    for path in ALL:
        old, new = model.walk()[path], adapted.walk()[path].base_layer
        assert new.weight is old.weight
        assert new.bias is old.bias


def test_layers_that_are_not_adapted_stay_the_same_objects():
    model = network()
    adapted = apply_lora(model, standard, ["in"])
    assert [adapted.walk()[path] is model.walk()[path] for path in ALL] == [True, False, True, True, True]


def test_names_stay_and_activations_follow():
    adapted = apply_lora(network(), standard)
    assert list(adapted.children()) == ["0", "encoder", "head", "head_activation"]
    assert list(adapted["encoder"].children()) == ["in", "in_activation", "deep"]
    assert list(adapted["encoder"]["deep"].children()) == ["0", "0_activation", "out"]
    assert adapted["head_activation"].activation == softmax


def test_every_base_is_linear_and_keeps_its_type():
    adapted = apply_lora(network(), standard)
    bases = [adapter.base_layer for adapter in adapters(adapted).values()]
    assert {base.activation.name for base in bases} == {"identity"}
    assert [type(base) for base in bases] == [type(network().walk()[path]) for path in ALL]


def test_no_layer_is_lost_if_the_name_of_an_activation_is_taken():
    model = Sequential({"a": DenseLayer(6, 6, relu, rng=0), "a_activation": DenseLayer(6, 6, rng=1)})
    with pytest.raises(ArgumentError, match="a_activation"):
        apply_lora(model, standard)


def test_existing_adapters_are_not_changed():
    adapted = apply_lora(network(), standard, ["in"])
    first = adapters(adapted)["encoder.in"]
    twice = apply_lora(adapted, FACTORIES["dylora"])
    assert adapters(twice)["encoder.in"] is first
    assert list(adapters(twice)) == ALL
    assert [name for name in twice.named_parameters() if name.startswith("encoder.in.")] == [
        "encoder.in.lora.matrix_a",
        "encoder.in.lora.matrix_b",
    ]


def test_a_single_dense_layer_becomes_the_adapter():
    layer = DenseLayer(6, 3, rng=0)
    adapter = apply_lora(layer, standard)
    assert type(adapter) is StandardLoRAAdapter
    assert adapter.base_layer is layer


def test_a_single_dense_layer_with_an_activation_becomes_a_stack():
    layer = DenseLayer(6, 3, relu, rng=0)
    adapted = apply_lora(layer, standard)
    assert list(adapted.children()) == ["linear", "linear_activation"]
    assert list(adapters(adapted)) == ["linear"]
    assert adapted["linear"].base_layer.weight is layer.weight
    np.testing.assert_allclose(adapted.predict(X), layer.predict(X), rtol=1e-14)


# ---------------------------------------------------------------- a factory for each layer


def test_each_layer_may_have_a_separate_factory():
    model = network()
    adapted = apply_adapters(model, {"head": standard, "encoder.in": FACTORIES["dora"]})
    assert {path: type(adapter) for path, adapter in adapters(adapted).items()} == {
        "head": StandardLoRAAdapter,
        "encoder.in": DoRAAdapter,
    }
    np.testing.assert_allclose(adapted.predict(X), model.predict(X), rtol=1e-13)


@pytest.mark.parametrize("paths", [ALL, ALL[::-1]], ids=["in-order", "reversed"])
def test_factories_are_called_in_the_order_of_the_layers(paths):
    calls = []

    def factory(layer):
        calls.append((layer.input_size, layer.output_size))
        return standard(layer)

    apply_adapters(network(), dict.fromkeys(paths, factory))
    assert calls == [(6, 6), (6, 4), (4, 4), (4, 5), (5, 3)]


def test_the_path_of_a_single_layer_is_empty():
    assert type(apply_adapters(DenseLayer(6, 3), {"": standard})) is StandardLoRAAdapter


@pytest.mark.parametrize("paths", [[], ["missing"], ["head", "encoder"], ["in"], [""]], ids=str)
def test_a_factory_without_a_dense_layer_is_an_error(paths):
    with pytest.raises(ArgumentError, match=f"dense layers of the model, which are {re.escape(str(ALL))}"):
        apply_adapters(network(), dict.fromkeys(paths, standard))


# ---------------------------------------------------------------- merging


@each_factory
def test_merging_keeps_the_outputs_and_counts(factory):
    model = randomised(apply_lora(network(), factory))
    before = model.predict(X)
    assert np.abs(before - network().predict(X)).max() > 1e-3
    assert merge_in_place(model) == 5
    assert not has_adapters(model)
    np.testing.assert_allclose(model.predict(X), before, rtol=1e-12)


def test_merging_leaves_bases_and_the_first_model_untouched():
    model = network()
    adapted = randomised(apply_lora(model, standard))
    before = snapshot(model)
    merge_in_place(adapted)
    assert snapshot(model) == before


def test_merging_keeps_names_and_types():
    adapted = apply_lora(network(), standard)
    names = [name for name in adapted.walk() if ".base" not in name and ".lora" not in name]
    merge_in_place(adapted)
    assert list(adapted.walk()) == names
    assert type(adapted["encoder"]["deep"]["0"]) is FullyConnectedLayer


def test_a_model_without_adapters_has_nothing_to_merge():
    model = network()
    before = snapshot(model)
    assert merge_in_place(model) == 0
    assert merge_in_place(DenseLayer(3, 2)) == 0
    assert snapshot(model) == before


def test_merging_reaches_into_the_stack_that_an_adapter_adapts():
    inner = randomised(apply_lora(Sequential([DenseLayer(6, 4, rng=0), DenseLayer(4, 6, rng=1)]), standard))
    frozen_stack = Sequential({"inside": inner})
    before = frozen_stack.predict(X)
    assert merge_in_place(frozen_stack) == 2
    np.testing.assert_allclose(frozen_stack.predict(X), before, rtol=1e-12)


@pytest.mark.parametrize(
    ("wrap", "error"),
    [
        (lambda layer: StandardLoRAAdapter(layer, 1, rng=0), InvalidOperationError),
        (lambda layer: MultiLoRAAdapter(layer, "task", 1, rng=0), NotSupportedError),
    ],
    ids=["standard", "multilora"],
)
def test_one_adapter_that_cannot_be_merged_leaves_the_whole_model_unchanged(wrap, error):
    inner = Sequential({"deep": standard(DenseLayer(6, 6, rng=1))})
    last = wrap(DenseLayer(6, 3, relu, rng=2))
    model = randomised(Sequential({"first": standard(DenseLayer(6, 6, rng=0)), "inner": inner, "last": last}))
    before = snapshot(model)
    with pytest.raises(error, match="split_activation"):
        merge_in_place(model)
    assert snapshot(model) == before


@each_factory
def test_a_lone_adapter_has_no_place_for_the_merged_layer(factory):
    with pytest.raises(InvalidOperationError, match="merge_to_original_layer"):
        merge_in_place(factory(DenseLayer(6, 3, rng=0)))


# ---------------------------------------------------------------- what is in a model


@pytest.mark.parametrize(
    ("build", "any_adapter", "multi"),
    [
        (network, False, False),
        (lambda: DenseLayer(3, 2), False, False),
        (lambda: LoRALayer(3, 3, 1), False, False),
        (lambda: standard(DenseLayer(6, 3)), True, False),
        (lambda: FACTORIES["multilora"](DenseLayer(6, 3)), True, True),
        (lambda: apply_lora(network(), standard, ["deep.0"]), True, False),
        (lambda: apply_lora(network(), FACTORIES["multilora"], ["deep.0"]), True, True),
        (lambda: standard(FACTORIES["multilora"](DenseLayer(6, 3))), True, True),
    ],
    ids=["network", "dense", "branch", "standard", "multi", "deep inside", "deep inside, multi", "multi as a base"],
)
def test_has_adapters_and_has_multi_lora_adapters(build, any_adapter, multi):
    assert has_adapters(build()) is any_adapter
    assert has_multi_lora_adapters(build()) is multi


def tasked(*names):
    def factory(layer):
        adapter = MultiLoRAAdapter(layer, names[0], 1, rng=0)
        for name in names[1:]:
            adapter.add_task(name, 1)
        return adapter

    return factory


def current_tasks(model):
    return [layer.current_task for layer in model.walk().values() if isinstance(layer, MultiLoRAAdapter)]


def test_select_task_switches_every_adapter_and_counts():
    model = apply_lora(network(), tasked("a", "b"))
    assert select_task(model, "b") == 5
    assert current_tasks(model) == ["b"] * 5


def test_select_task_reaches_a_lone_adapter():
    adapter = tasked("a", "b")(DenseLayer(3, 2))
    assert select_task(adapter, "b") == 1
    assert adapter.current_task == "b"


def test_select_task_changes_nothing_if_one_adapter_lacks_the_task():
    model = apply_lora(apply_lora(network(), tasked("a", "b"), ["0"]), tasked("a", "c"))
    with pytest.raises(ArgumentError, match=r"encoder\.in: task_name must be one of 'a', 'c'; got 'b'"):
        select_task(model, "b")
    assert current_tasks(model) == ["a"] * 5


@pytest.mark.parametrize("task", [None, 3, "", "z", ["a"]], ids=repr)
def test_select_task_refuses_an_unknown_task(task):
    model = apply_lora(network(), tasked("a", "b"))
    with pytest.raises(ArgumentError, match="task_name"):
        select_task(model, task)
    assert current_tasks(model) == ["a"] * 5


def test_the_message_names_a_lone_adapter():
    adapter = tasked("a")(DenseLayer(3, 2))
    with pytest.raises(ArgumentError, match=adapter.layer_name):
        select_task(adapter, "b")


@pytest.mark.parametrize("model", [network(), standard(DenseLayer(6, 3))], ids=["network", "adapter"])
def test_select_task_needs_an_adapter_with_tasks(model):
    with pytest.raises(InvalidOperationError, match="has no MultiLoRAAdapter"):
        select_task(model, "a")


# ---------------------------------------------------------------- the table


def test_the_table_as_text():
    model = apply_lora(Sequential({"in": DenseLayer(40, 30, relu), "out": DenseLayer(30, 10)}), standard, ["in"])
    assert str(trainable_parameters(model)) == "\n".join(
        [
            "array                    shape        size  trains",
            "in.base.weight         40 x 30       1,200  no",
            "in.base.bias                30          30  no",
            "in.lora.matrix_a        40 x 2          80  yes",
            "in.lora.matrix_b        2 x 30          60  yes",
            "out.weight             30 x 10         300  no",
            "out.bias                    10          10  no",
            "140 of 1,680 parameters train (8.33%)",
        ]
    )


@each_factory
def test_the_table_agrees_with_the_model(factory):
    model = apply_lora(network(), factory, exclude=["head"])
    table, arrays = trainable_parameters(model), model.named_parameters(frozen=True)
    assert table.trainable == model.parameter_count
    assert table.total == sum(array.size for array in arrays.values())
    assert [(row.name, row.shape, row.size) for row in table.rows] == [(n, a.shape, a.size) for n, a in arrays.items()]
    assert [row.name for row in table.rows if row.trains] == list(model.named_parameters())


def test_the_table_of_a_model_without_arrays():
    table = trainable_parameters(ActivationLayer(3, relu))
    assert (table.trainable, table.total) == (0, 0)
    assert str(table).endswith("0 of 0 parameters train (0.00%)")
