"""PEFT folders: what PEFT wrote does here what it does there, what is written comes back, what is damaged is refused."""

import json
import re
import shutil

import numpy as np
import pytest

from lora_np import (
    ArgumentError,
    DenseLayer,
    DoRAAdapter,
    FormatError,
    FullyConnectedLayer,
    LoRALayer,
    MultiLoRAAdapter,
    NotSupportedError,
    Sequential,
    StandardLoRAAdapter,
    VeRAAdapter,
    apply_lora,
    load_layer,
    merge_in_place,
    save_layer,
    select_task,
)
from lora_np.factors.weights import AdapterWeights, extract
from lora_np.io.peft import CONFIG, WEIGHTS, apply_peft, load_peft, peft_adapters, save_peft
from lora_np.io.safetensors import SafetensorsFile, load_safetensors, save_safetensors
from tests.io.networks import CASES, DATA, DY, FACTORIES, X, adapted, assert_close, dylora, expected, multilora, network
from tests.kinds import batch, bits
from tests.models.decoders import decoder

DYLORA = [kind for kind in FACTORIES if kind.startswith("dylora")]


@pytest.fixture
def folder(tmp_path):
    """A copy of an adapter that PEFT wrote, to be damaged."""
    copy = tmp_path / "adapter"
    shutil.copytree(DATA / "lora", copy)
    return copy


def edit_config(folder, **changes):
    """Change entries of a configuration; None takes one out."""
    config = json.loads((folder / CONFIG).read_text()) | changes
    (folder / CONFIG).write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


def edit_weights(folder, changes, metadata=None):
    """Change tensors of an adapter, by the end of their keys; None takes one out."""
    tensors = load_safetensors(folder / WEIGHTS) | {f"base_model.model.{name}": array for name, array in changes.items()}
    save_safetensors(folder / WEIGHTS, {name: array for name, array in tensors.items() if array is not None}, metadata)


def saved(tmp_path, adapters, **options):
    """The folder of adapters that were written."""
    save_peft(tmp_path / "saved", adapters, **options)
    return tmp_path / "saved"


def written_config(folder):
    return json.loads((folder / CONFIG).read_text())


def assert_same_weights(actual, wanted):
    """Equal to the bit."""
    assert set(actual.layers) == set(wanted.layers)
    for path, layer in wanted.layers.items():
        assert bits(actual.layers[path].named_parameters()) == bits(layer.named_parameters())
        assert actual.layers[path].scaling == layer.scaling
        assert actual.layers[path].alpha == layer.alpha
    assert bits(actual.magnitudes) == bits(wanted.magnitudes)
    assert actual.nested == wanted.nested


# ---------------------------------------------------------------- what PEFT wrote


@pytest.mark.parametrize("layer", [DenseLayer, FullyConnectedLayer])
@pytest.mark.parametrize("case", CASES)
class TestWrittenByPeft:
    def test_output(self, case, layer):
        assert_close(apply_peft(network(layer), DATA / case).predict(X), expected(case)["output"])

    def test_gradients(self, case, layer):
        model = apply_peft(network(layer), DATA / case)
        for adapter in model.walk().values():
            if isinstance(adapter, DoRAAdapter):
                adapter.norm_gradient = False  # as PEFT has it
        wanted = expected(case)
        model.forward(X)
        assert_close(model.backward(DY), wanted["input_gradient"])
        theirs = {name.removeprefix("gradient."): array for name, array in wanted.items() if name.startswith("gradient.")}
        names = {"lora.matrix_a": "lora_A", "lora.matrix_b": "lora_B", "magnitude": "lora_magnitude_vector"}
        ours = dict(model.gradients)
        assert len(ours) == len(theirs)
        for path in load_peft(DATA / case).layers:
            for name, their_name in names.items():
                if f"{path}.{name}" in ours:
                    assert_close(ours[f"{path}.{name}"].T, theirs[f"{path}.{their_name}"])

    def test_merged_weights(self, case, layer):
        model = apply_peft(network(layer), DATA / case)
        merge_in_place(model)
        wanted = expected(case)
        for path in ("body.up", "head"):
            linear = model.walk()[path]
            assert_close(linear.matrix.T, wanted[f"merged.{path}.weight"])
            assert_close(linear.bias, wanted[f"merged.{path}.bias"])


@pytest.mark.parametrize("task", ["french", "german"])
def test_named_adapters_become_tasks(task):
    model = apply_peft(network(), DATA / "tasks")
    select_task(model, task)
    assert_close(model.predict(X), expected(f"tasks/{task}")["output"])


def test_a_task_adds_nothing_to_a_layer_that_it_lacks():
    model = apply_peft(network(), DATA / "tasks")
    assert list(model.walk()["body.up"].task_adapters) == ["french", "german"]
    assert not model.walk()["body.up"].get_task_adapter("german").merge_weights().any()


def test_the_first_named_adapter_is_the_current_task():
    assert apply_peft(network(), DATA / "tasks").walk()["head"].current_task == "french"


def test_the_model_stays_as_it_is():
    model = network()
    before = bits(model.named_parameters())
    apply_peft(model, DATA / "lora")
    assert bits(model.named_parameters()) == before
    assert type(model.walk()["head"]) is FullyConnectedLayer


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_adapters_take_the_dtype_of_the_model(dtype):
    model = apply_peft(network(dtype=dtype), DATA / "lora")
    assert {array.dtype for array in model.named_parameters(frozen=True).values()} == {np.dtype(dtype)}
    assert_close(model.predict(X), expected("lora")["output"])


@pytest.mark.parametrize("case", CASES)
def test_factors_come_as_float32_where_the_file_is_not_float64(case):
    assert {layer.dtype for layer in load_peft(DATA / case).layers.values()} == {np.dtype(np.float32)}


def test_the_configuration_comes_as_it_stands():
    assert load_peft(DATA / "lora").config == written_config(DATA / "lora")


# ---------------------------------------------------------------- round trips


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", FACTORIES)
class TestRoundTrip:
    def test_weights_come_back_exactly(self, tmp_path, kind, dtype):
        wanted = extract(adapted(FACTORIES[kind], dtype=dtype))
        assert_same_weights(load_peft(saved(tmp_path, wanted)), wanted)

    def test_models_come_back_exactly(self, tmp_path, kind, dtype):
        model = adapted(FACTORIES[kind], dtype=dtype)
        twin = apply_peft(network(dtype=dtype), saved(tmp_path, model))
        assert bits(twin.named_parameters(frozen=True)) == bits(model.named_parameters(frozen=True))
        for path in ("body.up", "head"):
            assert twin.walk()[path]._details() == model.walk()[path]._details()
        assert np.array_equal(twin.predict(X), model.predict(X))


def test_equal_adapters_give_equal_bytes(tmp_path):
    for name in ("one", "two"):
        save_peft(tmp_path / name, adapted(FACTORIES["dylora"]))
    for file in (CONFIG, WEIGHTS):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_factors_are_stored_transposed(tmp_path):
    model = adapted(FACTORIES["standard"])
    tensors = load_safetensors(saved(tmp_path, model) / WEIGHTS)
    layer = model.walk()["head"].lora_layer
    assert np.array_equal(tensors["base_model.model.head.lora_A.weight"], layer.matrix_a.T)
    assert np.array_equal(tensors["base_model.model.head.lora_B.weight"], layer.matrix_b.T)


MIXED = {
    "ranks": StandardLoRAAdapter,
    "alphas": lambda linear, rank: StandardLoRAAdapter(linear, rank, 0.7),
    "rslora": lambda linear, rank: StandardLoRAAdapter(linear, rank, 0.7, scaling="rslora"),
    "rslora on one": lambda linear, rank: StandardLoRAAdapter(linear, rank, scaling="rslora" if rank == 3 else "max"),
}


@pytest.mark.parametrize("mix", MIXED)
def test_layers_keep_a_rank_and_an_alpha_of_their_own(tmp_path, mix):
    model = adapted(lambda linear: MIXED[mix](linear, 3), lambda linear: MIXED[mix](linear, 1))
    twin = apply_peft(network(), saved(tmp_path, model))
    assert [twin.walk()[path].rank for path in ("body.up", "head")] == [1, 3]
    assert_close(twin.predict(X), model.predict(X), 1e-15)


def test_patterns_name_whole_paths(tmp_path):
    layers = {path: LoRALayer(4, 3, 2 if path == "a.up" else 1, rng=0) for path in ("up", "a.up", "axup", "b.a.up")}
    folder = saved(tmp_path, AdapterWeights(layers))
    assert written_config(folder)["rank_pattern"] == {r"^a\.up": 2}
    assert_same_weights(load_peft(folder), AdapterWeights(layers))


@pytest.mark.parametrize("kind", DYLORA)
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_dylora_at_a_rank_is_a_plain_adapter(tmp_path, kind, rank):
    model = adapted(FACTORIES[kind])
    folder = saved(tmp_path, model, rank=rank)
    for path in ("body.up", "head"):
        model.walk()[path].current_deployment_rank = rank
    twin = apply_peft(network(), folder)
    assert type(twin.walk()["head"]) is StandardLoRAAdapter
    assert written_config(folder)["r"] == rank
    assert written_config(folder)["lora_alpha"] == pytest.approx(model.walk()["head"].scaling_at(rank) * rank, rel=1e-15)
    assert_close(twin.predict(X), model.predict(X), 1e-14)


@pytest.mark.parametrize("kind", DYLORA)
def test_a_whole_dylora_keeps_its_settings(tmp_path, kind):
    model = adapted(FACTORIES[kind])
    twin = apply_peft(network(), saved(tmp_path, model)).walk()["head"]
    adapter = model.walk()["head"]
    for setting in ("active_ranks", "mode", "rank_distribution", "current_deployment_rank", "max_rank", "alpha"):
        assert getattr(twin, setting) == getattr(adapter, setting)
    assert twin.lora_layer.scaling_rule == adapter.lora_layer.scaling_rule


def test_only_a_whole_dylora_has_metadata_of_ours(tmp_path):
    for name, rank in [("whole", None), ("plain", 2)]:
        save_peft(tmp_path / name, adapted(dylora), rank=rank)
        with SafetensorsFile(tmp_path / name / WEIGHTS) as file:
            assert file.metadata["format"] == "pt"
            assert ("lora_np" in file.metadata) == (rank is None)


def test_multilora_writes_a_folder_for_each_task(tmp_path):
    model = adapted(multilora)
    folder = saved(tmp_path, model)
    assert list(peft_adapters(folder)) == ["french", "german"]
    twin = apply_peft(network(), folder)
    for task in ("french", "german"):
        select_task(model, task)
        select_task(twin, task)
        assert np.array_equal(twin.predict(X), model.predict(X))


@pytest.mark.parametrize("path", ["adapter", "model"])
def test_a_rank_above_the_sizes_works_and_can_be_saved(tmp_path, path):
    layer = LoRALayer.from_factors(batch(5, 9), batch(9, 4, seed=2), 3.0)
    model = apply_peft(network(), saved(tmp_path, AdapterWeights({"head": layer})))
    assert model.walk()["head"].rank == 9
    assert np.array_equal(model.walk()["head"].lora_layer.merge_weights(), layer.merge_weights())
    whole = model.walk()["head"] if path == "adapter" else model
    save_layer(whole, tmp_path / "whole.npz")
    x = batch(3, whole.input_size)
    assert np.array_equal(load_layer(tmp_path / "whole.npz").predict(x), whole.predict(x))


def test_more_entries_of_the_configuration_are_written(tmp_path):
    folder = saved(tmp_path, adapted(FACTORIES["standard"]), config={"task_type": "CAUSAL_LM", "revision": "é"})
    assert written_config(folder)["task_type"] == "CAUSAL_LM"
    assert written_config(folder)["revision"] == "é"


# ---------------------------------------------------------------- the configuration's rules

PATTERNS = [
    ({}, 2.0),
    ({"head": 6}, 6.0),
    ({"body.up": 6}, 2.0),
    ({"hea": 6}, 2.0),
    ({"ead": 6}, 2.0),
    ({"he.d": 6}, 6.0),
    ({"^head": 6}, 6.0),
    ({".*": 6, "head": 4}, 6.0),
    ({"up|head": 6}, 6.0),
]


@pytest.mark.parametrize(("patterns", "alpha"), PATTERNS)
def test_the_first_pattern_that_matches_the_end_of_a_path_counts(folder, patterns, alpha):
    edit_config(folder, lora_alpha=2, alpha_pattern=patterns)
    assert load_peft(folder).layers["head"].alpha == alpha


@pytest.mark.parametrize(
    ("key", "matches"), [("up", True), ("body.up", True), ("^up", False), ("^body.up", True), ("y.up", False)]
)
def test_patterns_match_whole_names(folder, key, matches):
    edit_config(folder, alpha_pattern={key: 6})
    assert load_peft(folder).layers["body.up"].alpha == (6 if matches else 3)


def test_rank_patterns_are_checked(folder):
    edit_config(folder, r=5, rank_pattern={"up": 2, "head": 2})
    assert load_peft(folder).layers["head"].rank == 2


def test_rank_and_alpha_are_8_where_they_are_left_out(tmp_path):
    folder = saved(tmp_path, AdapterWeights({"head": LoRALayer(9, 8, 8, 2.0)}))
    edit_weights(folder, {})  # without the digest of the configuration
    edit_config(folder, r=None, lora_alpha=None)
    assert load_peft(folder).layers["head"].alpha == 8


@pytest.mark.parametrize("targets", [["up", "head"], ["body.up", "head"], ".*(up|head)", "all-linear"])
def test_targets_that_name_every_layer(folder, targets):
    edit_config(folder, target_modules=targets)
    assert list(load_peft(folder).layers) == ["body.up", "head"]


@pytest.mark.parametrize("targets", [["head"], ["p", "head"], ["body", "head"], "head", "up|head", "body|head"])
def test_a_layer_that_is_not_targeted_is_refused(folder, targets):
    edit_config(folder, target_modules=targets)
    with pytest.raises(FormatError, match=r"adapter_model\.safetensors: base_model\.model\.body\.up: target_modules"):
        load_peft(folder)
    assert list(load_peft(folder, drop="body*").layers) == ["head"]


Q = "model.layers.3.self_attn.q_proj"

TARGETS = [
    ({"target_modules": ["q_proj"]}, Q, True),
    ({"target_modules": ["q_proj"], "exclude_modules": ["q_proj"]}, Q, False),
    ({"target_modules": ["q_proj"], "exclude_modules": r".*layers\.3\..*"}, Q, False),
    ({"target_modules": ["q_proj"], "exclude_modules": ["proj"]}, Q, True),
    ({"target_modules": ["q_proj"], "layers_to_transform": 3}, Q, True),
    ({"target_modules": ["q_proj"], "layers_to_transform": [1, 3]}, Q, True),
    ({"target_modules": ["q_proj"], "layers_to_transform": [1]}, Q, False),
    ({"target_modules": ["q_proj"], "layers_to_transform": []}, Q, True),
    ({"target_modules": [Q], "layers_to_transform": [1]}, Q, True),
    ({"target_modules": ".*q_proj", "layers_to_transform": [1]}, Q, True),
    ({"target_modules": ["q_proj"], "layers_to_transform": [3], "layers_pattern": "layers"}, Q, True),
    ({"target_modules": ["q_proj"], "layers_to_transform": [3], "layers_pattern": ["h", "lay.*"]}, Q, True),
    ({"target_modules": ["q_proj"], "layers_to_transform": [3], "layers_pattern": "h"}, Q, False),
    ({"target_modules": ["q"], "layers_to_transform": [0]}, "layers.0.q", False),
    ({"target_modules": ["q"], "layers_to_transform": [0], "layers_pattern": "layers"}, "layers.0.q", True),
    ({"target_modules": ["w"], "layers_to_transform": [2]}, "model.layers.2.experts.0.w", True),
    ({"target_modules": ["w"], "layers_to_transform": [0]}, "model.layers.2.experts.0.w", False),
    ({"target_parameters": ["self_attn.q_proj.weight"]}, Q, True),
    ({"target_modules": ["v_proj"], "target_parameters": ["q_proj.weight"], "exclude_modules": ["q_proj"]}, Q, False),
]
"""Configurations, names of modules, and whether PEFT targets them; compared with PEFT itself in test_peft_oracle.py."""


@pytest.mark.parametrize(("entries", "path", "named"), TARGETS)
def test_all_entries_that_name_layers_are_read(tmp_path, entries, path, named):
    folder = saved(tmp_path, AdapterWeights({path: LoRALayer(4, 3, 1, 1.0)}), config={"target_modules": None} | entries)
    if named:
        assert list(load_peft(folder).layers) == [path]
    else:
        with pytest.raises(FormatError, match=r"target_modules of adapter_config\.json does not name it"):
            load_peft(folder)


@pytest.mark.parametrize("start", [True, False, "gaussian", "eva", "orthogonal"])
def test_initial_values_that_leave_the_base_alone_are_fine(folder, start):
    edit_config(folder, init_lora_weights=start)
    assert_same_weights(load_peft(folder), load_peft(DATA / "lora"))


# ---------------------------------------------------------------- what is refused when reading


def remove(name):
    return lambda folder: (folder / name).unlink()


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


def config(**changes):
    return lambda folder: edit_config(folder, **changes)


def weights(changes, metadata=None):
    return lambda folder: edit_weights(folder, changes, metadata)


def ours(content):
    """Metadata as lora_np writes it."""
    return weights({}, {"lora_np": content if isinstance(content, str) else json.dumps(content)})


SETTINGS = {
    "active_ranks": [1, 2],
    "alpha": 3.0,
    "mode": "full",
    "scaling": "max",
    "rank_distribution": [0.5, 0.5],
    "current_deployment_rank": 2,
}

DAMAGES = {
    "no configuration": (remove(CONFIG), r"adapter: contains no adapter_config\.json"),
    "no weights": (remove(WEIGHTS), r"adapter: contains no adapter_model\.safetensors"),
    "no JSON": (write(CONFIG, "{"), r"adapter_config\.json: invalid JSON"),
    "too deep JSON": (write(CONFIG, "[" * 200_000), r"adapter_config\.json: invalid JSON"),
    "a list": (write(CONFIG, "[]"), r"adapter_config\.json: peft_type must be one of LORA, ADALORA, VERA, got None"),
    "another type": (
        config(peft_type="IA3"),
        r"adapter_config\.json: peft_type must be one of LORA, ADALORA, VERA, got 'IA3'",
    ),
    "no targets": (config(target_modules=None), r"adapter_config\.json: target_modules must be"),
    "targets of another kind": (config(target_modules=3), r"adapter_config\.json: target_modules must be"),
    "patterns in a list": (config(rank_pattern=["up"]), r"adapter_config\.json: rank_pattern must be a mapping"),
    "an open pattern": (
        config(alpha_pattern={"(": 1}),
        r"json: the pattern '\(' of alpha_pattern is not supported: missing",
    ),
    "a pattern with flags": (config(rank_pattern={"(?i)up": 1}), r"of rank_pattern is not supported: the group '\(\?i'"),
    "open targets": (config(target_modules="("), r"json: the pattern '\(' of target_modules is not supported"),
    "nested repetition": (
        config(target_modules="(a*)*b"),
        r"json: the pattern .* of target_modules is not supported: repet",
    ),
    "open exclusions": (config(exclude_modules="["), r"json: the pattern '\[' of exclude_modules is not supported"),
    "an open pattern of blocks": (config(layers_pattern=["h", "+"]), r"json: the pattern '\+' of layers_pattern is not"),
    "a text for true": (config(use_rslora="false"), r"json: use_rslora must be true or false, got 'false'"),
    "a number for true": (config(use_dora=1), r"json: use_dora must be true or false, got 1"),
    "a true rank": (config(r=True), r"json: r must be an integer, got True"),
    "ranks in words": (config(rank_pattern={"up": "2"}), r"json: rank_pattern must be a mapping .*, got {'up': '2'}"),
    "a number among names": (config(modules_to_save=["head", 3]), r"json: modules_to_save must be a list of names"),
    "tokens in words": (config(trainable_token_indices=["3"]), r"json: trainable_token_indices must be a list of numbers"),
    "another bias": (config(bias="some"), r"json: bias must be 'none', 'all' or 'lora_only', got 'some'"),
    "a key twice": (
        write(CONFIG, '{"peft_type": "LORA", "r": 2, "r": 3}'),
        r"json: invalid JSON: the key 'r' occurs twice",
    ),
    "half of a character": (write(CONFIG, '{"peft_type": "\\ud800"}'), r"json: invalid JSON: .*surrogates"),
    "a number of 5000 digits": (write(CONFIG, '{"r": ' + "9" * 5000 + "}"), r"json: invalid JSON: Exceeds the limit"),
    "a bias of B without lora_bias": (
        weights({"head.lora_B.bias": np.ones(4)}),
        r"head\.lora_B\.bias must be there if and only if lora_bias is true",
    ),
    "lora_bias without a bias of B": (config(lora_bias=True), r"body\.up\.lora_B\.bias must be there if and only if"),
    "another kind of adapter": (
        weights({"tail.hada_w1_a": np.ones((4, 2))}),
        r"adapter_model\.safetensors: unexpected key '.*\.tail\.hada_w1_a'",
    ),
    "tokens without indices": (
        weights({"table.token_adapter.trainable_tokens_delta": np.ones((2, 4))}),
        r"table\.token_adapter\.trainable_tokens_delta must have a row for each of trainable_token_indices",
    ),
    "a negative alpha": (
        config(lora_alpha=-1),
        r"base_model\.model\.body\.up: alpha must be .* at least 0, got -1",
    ),
    "alpha in words": (config(lora_alpha="16"), "alpha must be a number of at least 0, got '16'"),
    "a true alpha": (config(lora_alpha=True), "alpha must be a number of at least 0, got True"),
    "alpha not a number": (config(lora_alpha=float("nan")), "alpha must be a number of at least 0, got nan"),
    "an infinite alpha": (config(lora_alpha=float("inf")), "alpha must be finite"),
    "another rank": (config(r=3), r"body\.up\.lora_A\.weight must have the rank 3 of the configuration"),
    "another rank by pattern": (config(rank_pattern={"head": 1}), r"head\.lora_A\.weight must have the rank 1"),
    "no A": (weights({"head.lora_A.weight": None}), r"base_model\.model\.head\.lora_A\.weight is missing"),
    "no B": (weights({"head.lora_B.weight": None}), r"base_model\.model\.head\.lora_B\.weight is missing"),
    "a narrow B": (
        weights({"head.lora_B.weight": np.ones((4, 1))}),
        r"base_model\.model\.head: matrix_a and matrix_b",
    ),
    "no rows": (
        weights({"head.lora_B.weight": np.ones((0, 2))}),
        r"head\.lora_B\.weight must have floating-point elements, got .* \(0, 2\)",
    ),
    "a stray key": (
        weights({"head.bias": np.ones(4)}),
        r"adapter_model\.safetensors: unexpected key '.*\.head\.bias': not a LoRA factor",
    ),
    "magnitudes, but no DoRA": (
        weights({"head.lora_magnitude_vector": np.ones(4)}),
        r"head\.lora_magnitude_vector must be there if and only if use_dora is true",
    ),
    "DoRA, but no magnitudes": (config(use_dora=True), r"body\.up\.lora_magnitude_vector must be there"),
    "metadata that is no JSON": (ours("{"), r"adapter_model\.safetensors: its lora_np metadata is damaged"),
    "metadata that is a list": (ours([]), "metadata is damaged"),
    "settings in a list": (ours({"nested": []}), "metadata is damaged"),
    "settings of another kind": (ours({"nested": {"head": 3}}), "head: invalid DyLoRA settings: .*, got 3"),
    "a setting is missing": (
        ours({"nested": {"head": {"alpha": 3}}}),
        "head: invalid DyLoRA .* the settings must be",
    ),
    "one setting more": (
        ours({"nested": {"head": SETTINGS | {"freeze_base_layer": False}}}),
        "head: invalid DyLoRA .* the settings must be",
    ),
    "an unknown scaling": (
        ours({"nested": {"head": SETTINGS | {"scaling": "min"}}}),
        "head: invalid DyLoRA .* scaling must be",
    ),
    "a rank that the factors do not have": (
        ours({"nested": {"head": SETTINGS | {"active_ranks": [1, 3], "current_deployment_rank": 3}}}),
        "head: invalid DyLoRA settings: ",
    ),
    "a nested alpha in words": (
        ours({"nested": {"head": SETTINGS | {"alpha": "3"}}}),
        "head: invalid DyLoRA .* alpha must be a real",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused(folder, damage):
    act, message = DAMAGES[damage]
    act(folder)
    with pytest.raises(FormatError, match=message):
        load_peft(folder)


WRONG = {
    "lora_alpha": ["16", True],
    "lora_dropout": ["0.1", True, -0.1, 1],
    "vera_dropout": [[0.1]],
    "rank_pattern": [{"up": 1.5}, {"up": True}],
    "alpha_pattern": [{"up": "3"}, [3]],
    "target_modules": [3, ["up", 3]],
    "exclude_modules": [True],
    "target_parameters": ["up", [3]],
    "layers_to_transform": ["1", 1.5, True, ["1"]],
    "trainable_token_indices": [3, {"table": 3}, {"table": [True]}],
    "base_model_name_or_path": [3],
    "task_type": [["CAUSAL_LM"]],
    "fan_in_fan_out": [0],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_an_entry_of_the_wrong_kind_is_refused(folder, name, value):
    config(**{name: value})(folder)
    with pytest.raises(FormatError, match=re.escape(f"{CONFIG}: {name} must be ") + ".*, got " + re.escape(repr(value))):
        load_peft(folder)


@pytest.mark.parametrize("dropout", [0, 0.0, 0.75])
def test_a_dropout_is_that_of_the_layers(folder, dropout):
    config(lora_dropout=dropout)(folder)
    assert {layer.dropout for layer in load_peft(folder).layers.values()} == {dropout}


@pytest.mark.parametrize("indices", [[3, 1], {"other": [0], "table": [3, 1]}])
def test_the_indices_of_tokens_may_be_a_list_or_by_name(folder, indices):
    values = np.arange(8.0).reshape(2, 4)
    config(trainable_token_indices=indices)(folder)
    weights({"table.token_adapter.trainable_tokens_delta": values})(folder)
    rows = load_peft(folder).rows["table.weight"]
    assert dict(zip(rows.indices.tolist(), rows.values.tolist(), strict=True)) == {3: [0, 1, 2, 3], 1: [4, 5, 6, 7]}


def test_the_whole_configuration(tmp_path):
    sizes = {"a.q": (2, 3.0), "a.k": (2, 3.0), "b.q": (1, 3.0), "b.k": (2, 5.0)}
    layers = {path: LoRALayer(4, 3, *size, dropout=0.25, rng=0) for path, size in sizes.items()}
    folder = saved(tmp_path, AdapterWeights(layers), config={"base_model_name_or_path": "Modèle"})
    text = (folder / CONFIG).read_text(encoding="utf-8")
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    assert json.loads(text) == {
        "peft_type": "LORA",
        "base_model_name_or_path": "Modèle",
        "task_type": None,
        "inference_mode": True,
        "target_modules": ["a.k", "a.q", "b.k", "b.q"],
        "r": 2,
        "lora_alpha": 3.0,
        "rank_pattern": {r"^b\.q": 1},
        "alpha_pattern": {r"^b\.k": 5.0},
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
        "lora_dropout": 0.25,
        "bias": "none",
    }


def test_weights_that_gpt2_stores_transposed_are_noted(tmp_path):
    model = apply_lora(decoder("gpt2"), StandardLoRAAdapter, ["c_attn"], rank=1, rng=0)
    save_peft(tmp_path / "one", model)
    save_peft(tmp_path / "two", model, config={"fan_in_fan_out": False})
    assert [written_config(tmp_path / name)["fan_in_fan_out"] for name in ("one", "two")] == [True, False]


def test_arguments_are_checked(folder, tmp_path):
    with pytest.raises(ArgumentError, match="model must be a layer"):
        apply_peft([network()], folder)
    with pytest.raises(ArgumentError, match="adapters must be AdapterWeights or a model with adapters"):
        save_peft(tmp_path / "new", {})
    with pytest.raises(ArgumentError, match="config must be a mapping"):
        save_peft(tmp_path / "new", load_peft(folder), config=[])
    assert not (tmp_path / "new").exists()


def test_layers_of_several_dropouts_are_refused(tmp_path):
    layers = {path: LoRALayer(4, 3, 1, dropout=dropout, rng=0) for path, dropout in (("a", 0.1), ("b", 0.1), ("c", 0.2))}
    with pytest.raises(NotSupportedError, match=r"one dropout for all layers, but 'a' has 0\.1 and 'c' 0\.2"):
        save_peft(tmp_path / "adapter", AdapterWeights(layers))
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_of_adapted_layers_as_before_peft_0_8(folder, bias):
    config(bias=bias)(folder)
    weights({"head.bias": np.arange(4.0)})(folder)
    assert load_peft(folder).whole["head.bias"].tolist() == [0, 1, 2, 3]
    weights({"head.bias": None, "head.scale": np.ones(4)})(folder)
    with pytest.raises(FormatError, match=r"unexpected key '.*\.head\.scale'"):
        load_peft(folder)


def test_a_file_of_other_tensors_is_refused(folder):
    save_safetensors(folder / WEIGHTS, {"base_model.model.tail.hada_w1_a": np.ones((4, 2))})
    with pytest.raises(FormatError, match=r"unexpected key 'base_model\.model\.tail\.hada_w1_a'"):
        load_peft(folder)
    with pytest.raises(FormatError, match="contains no LoRA factors"):
        load_peft(folder, drop="*.hada_*")


@pytest.mark.parametrize(("one", "other"), ["AB", "BA"])
def test_the_missing_factor_of_an_embedding_is_named(folder, one, other):
    config(target_modules=["up", "head", "table"])(folder)
    weights({f"table.lora_embedding_{one}": np.ones((2, 2))})(folder)
    with pytest.raises(FormatError, match=rf"table\.lora_embedding_{other} is missing"):
        load_peft(folder)


def test_a_magnitude_of_another_size_is_refused(tmp_path):
    shutil.copytree(DATA / "dora", tmp_path / "adapter")
    edit_weights(tmp_path / "adapter", {"head.lora_magnitude_vector": np.ones(5)})
    with pytest.raises(FormatError, match=r"head\.lora_magnitude_vector must have shape \(4,\), got \(5,\)"):
        load_peft(tmp_path / "adapter")


UNSUPPORTED = {
    "use_qalora": config(use_qalora=True),
    "use_bdlora": config(use_bdlora={"nblocks": 2}),
    "alora_invocation_tokens": config(alora_invocation_tokens=[1]),
    "layer_replication": config(layer_replication=[[0, 2]]),
    "kasa_config": config(kasa_config={"beta": 1}),
    "monteclora_config": config(monteclora_config={"use_entropy": True}),
    "arrow_config": config(arrow_config={"top_k": 1}),
    "init_lora_weights='pissa'": config(init_lora_weights="pissa"),
    "init_lora_weights='pissa_niter_4'": config(init_lora_weights="pissa_niter_4"),
    "init_lora_weights='OLoRA'": config(init_lora_weights="OLoRA"),
    "init_lora_weights='loftq'": config(init_lora_weights="loftq"),
    "a convolution in groups": weights(
        {"head.lora_A.weight": np.ones((2, 5, 3)), "head.lora_B.weight": np.ones((4, 1, 1))}
    ),
}


@pytest.mark.parametrize("message", UNSUPPORTED)
def test_another_function_than_that_of_lora_is_refused(folder, message):
    UNSUPPORTED[message](folder)
    with pytest.raises(NotSupportedError, match=message):
        load_peft(folder)


def test_a_pickle_is_never_read(folder):
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(NotSupportedError, match=r"adapter_model\.bin is a pickle"):
        load_peft(folder)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FormatError, match="missing: contains no adapter_config"):
        load_peft(tmp_path / "missing")


def test_a_folder_of_named_adapters_is_not_one_adapter():
    with pytest.raises(FormatError, match="contains the adapters french, german in subfolders"):
        load_peft(DATA / "tasks")


@pytest.mark.parametrize("name", ["default", "checkpoint-1"])
def test_folders_inside_do_not_hide_an_adapter(folder, name):
    shutil.copytree(DATA / "rslora", folder / name)
    assert_same_weights(load_peft(folder), load_peft(DATA / "lora"))
    assert_close(apply_peft(network(), folder).predict(X), expected("lora")["output"])


def test_a_stray_key_may_be_left_out(folder):
    edit_weights(folder, {"head.bias": np.ones(4), "head.lora_A.bias": np.ones(2)})
    weights = load_peft(folder, drop=["head.bias", "*.lora_[AB].bias"])
    assert_same_weights(weights, load_peft(DATA / "lora"))
    assert weights.dropped == ("base_model.model.head.bias", "base_model.model.head.lora_A.bias")


@pytest.mark.parametrize("place", ["", "task"])
def test_applying_may_leave_out_a_stray_key_too(tmp_path, place):
    shutil.copytree(DATA / "lora", tmp_path / "model" / place)
    edit_weights(tmp_path / "model" / place, {"head.bias": np.ones(4)})
    with pytest.raises(FormatError, match=r"unexpected key .*head\.bias.: not a LoRA factor"):
        apply_peft(network(), tmp_path / "model")
    assert_close(apply_peft(network(), tmp_path / "model", drop="head.bias").predict(X), expected("lora")["output"])


@pytest.mark.parametrize("names", [[], ["other"]])
def test_a_file_without_factors_is_refused(folder, names):
    save_safetensors(folder / WEIGHTS, {name: np.ones(3) for name in names})
    with pytest.raises(FormatError, match="contains no LoRA factors"):
        load_peft(folder, drop="other")


def test_settings_of_other_layers_are_left_out(folder):
    ours({"nested": {"elsewhere": SETTINGS, "head": SETTINGS}})(folder)
    assert list(load_peft(folder).nested) == ["head"]


# ---------------------------------------------------------------- what is refused when applying


def test_a_path_that_the_model_does_not_have(tmp_path):
    folder = saved(tmp_path, AdapterWeights({"tail": LoRALayer(5, 4, 1)}))
    with pytest.raises(FormatError, match=r"saved: does not fit the model: .*'tail'"):
        apply_peft(network(), folder)


@pytest.mark.parametrize("named", [False, True])
def test_a_layer_of_another_size(tmp_path, named):
    save_peft(tmp_path / "fr" if named else tmp_path, AdapterWeights({"head": LoRALayer(6, 4, 1)}))
    with pytest.raises(FormatError, match="head: the adapter is 6 -> 4, the layer 5 -> 4"):
        apply_peft(network(), tmp_path)


def test_dora_cannot_be_a_task(tmp_path):
    shutil.copytree(DATA / "dora", tmp_path / "one")
    with pytest.raises(NotSupportedError, match="'one' is DoRA"):
        apply_peft(network(), tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        {"active_ranks": [2, 1]},
        {"active_ranks": [2, 9]},
        {"mode": "half"},
        {"current_deployment_rank": 3},
        {"alpha": -2},
    ],
)
def test_settings_that_break_a_rule(folder, damage):
    ours({"nested": {"head": SETTINGS | damage}})(folder)
    with pytest.raises(FormatError, match=next(iter(damage)).removeprefix("current_deployment_")):
        apply_peft(network(), folder)


# ---------------------------------------------------------------- what is refused when writing


def task_named(name):
    return lambda linear: MultiLoRAAdapter(linear, name, 1)


def different_tasks():
    return adapted(multilora, task_named("french"))


def dora_on_one():
    return adapted(FACTORIES["dora"], FACTORIES["standard"])


def vera():
    return VeRAAdapter(DenseLayer(4, 3), 2)


def no_path():
    return StandardLoRAAdapter(DenseLayer(4, 3), 1)


REFUSED = {
    "different tasks": (different_tasks, {}, ArgumentError, r"must have the tasks \['french'\]"),
    "DoRA on one layer": (dora_on_one, {}, NotSupportedError, "DoRA on all of its layers or on none"),
    "VeRA without a path": (vera, {}, ArgumentError, "PEFT needs a path"),
    "no adapter": (network, {}, ArgumentError, "model must have an adapter"),
    "no layer": (lambda: AdapterWeights({}), {}, ArgumentError, "at least one layer"),
    "no path": (no_path, {}, ArgumentError, "PEFT needs a path"),
    "no active rank": (lambda: adapted(dylora), {"rank": 3}, ArgumentError, r"active ranks \(1, 2, 4\), got 3"),
    "a rank for weights": (lambda: extract(adapted(dylora)), {"rank": 2}, ArgumentError, "rank needs a model"),
    "no JSON": (lambda: adapted(dylora), {"config": {"task_type": object()}}, ArgumentError, "JSON"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_peft_cannot_hold_is_refused(tmp_path, reason):
    build, options, error, message = REFUSED[reason]
    with pytest.raises(error, match=message):
        save_peft(tmp_path / "saved", build(), **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a/b", "a\\b", "..", ".", "default", "__base__", "trailing ", " leading", "a:b", "a\nb"])
def test_a_task_that_cannot_be_a_folder_is_refused(tmp_path, name):
    with pytest.raises(ArgumentError, match="cannot be the name of a folder"):
        save_peft(tmp_path / "saved", Sequential({"head": task_named(name)(DenseLayer(4, 3))}))
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- many folders, wherever they are


def test_folders_anywhere_become_tasks(tmp_path):
    for place in ("here", "there/deep"):
        shutil.copytree(DATA / "tasks" / "german", tmp_path / place)
    model = apply_peft(
        network(), {"a/b": tmp_path / "there/deep", "french": str(DATA / "tasks/french"), "default": tmp_path / "here"}
    )
    head = model.walk()["head"]
    assert list(head.task_adapters) == ["a/b", "french", "default"]
    assert head.current_task == "a/b"
    named = apply_peft(network(), DATA / "tasks")
    for task, same in {"a/b": "german", "french": "french", "default": "german"}.items():
        assert_close(model.predict(X, tasks=[task] * len(X)), named.predict(X, tasks=[same] * len(X)), 1e-12)


def test_one_folder_by_task_is_a_task_too():
    model = apply_peft(network(), {"only": DATA / "lora"})
    assert isinstance(model.walk()["head"], MultiLoRAAdapter)
    assert_close(model.predict(X), apply_peft(network(), DATA / "lora").predict(X), 1e-12)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ({}, "folder must contain at least one task, got none"),
        ({" ": DATA / "lora"}, "folder must map names of tasks to folders, got ' '"),
        ({3: DATA / "lora"}, "folder must map names of tasks to folders, got 3"),
    ],
    ids=["none", "blank", "number"],
)
def test_bad_names_of_tasks_are_refused(folders, message):
    with pytest.raises(ArgumentError, match=f"^{message}$"):
        apply_peft(network(), folders)


def test_a_folder_by_task_that_does_not_fit_is_named(tmp_path):
    folders = {"first": DATA / "lora", "second": DATA / "dora"}
    with pytest.raises(NotSupportedError, match=rf"{DATA / 'dora'}.*'second' is DoRA"):
        apply_peft(network(), folders)
    save_peft(tmp_path / "other", AdapterWeights({"head": LoRALayer(7, 4, 1)}))
    with pytest.raises(FormatError, match=r"^folder: does not fit the model: .*7 -> 4"):
        apply_peft(network(), {"first": DATA / "lora", "second": tmp_path / "other"})
    with pytest.raises(FormatError, match="nowhere"):
        apply_peft(network(), {"first": tmp_path / "nowhere"})
