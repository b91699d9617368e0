"""VeRA and AdaLoRA of PEFT: into checkpoints, into models and, for VeRA, back into folders."""

import json
import shutil

import numpy as np
import pytest

from lora_np import (
    DenseLayer,
    FormatError,
    NotSupportedError,
    Sequential,
    StandardLoRAAdapter,
    VeRAAdapter,
    apply_lora,
    merge_in_place,
)
from lora_np.io._peft_vera import with_base_sizes
from lora_np.io.peft import CONFIG, WEIGHTS, apply_peft, load_peft, peft_type, save_peft
from lora_np.io.safetensors import load_safetensors, save_safetensors
from tests.io.kinds import FOLDER
from tests.kinds import bits

BASE = load_safetensors(FOLDER / "bases" / "net.safetensors")
VERA, ADALORA = FOLDER / "peft-vera", FOLDER / "peft-adalora"


def model(dtype=np.float64, **sizes):
    """A model of the two layers that the fixtures adapt, with the weights of their base."""
    layers = {}
    for name in ("up", "head"):
        W, b = BASE[f"{name}.weight"].astype(dtype), BASE[f"{name}.bias"].astype(dtype)
        layers[name] = DenseLayer(W.shape[1], W.shape[0], dtype=dtype, rng=0)
        layers[name].set_parameters(np.concatenate([W.T.ravel(), b]))
    return Sequential(layers)


def merged_weights(adapted):
    merge_in_place(adapted)
    return {name: adapted[name].matrix.T for name in ("up", "head")}


@pytest.fixture
def folder(tmp_path):
    """A copy of an adapter of a kind, with changed tensors and entries of the configuration."""

    def copied(source, tensors=None, **config):
        place = tmp_path / f"copy {len(list(tmp_path.iterdir()))}"
        shutil.copytree(source, place)
        if tensors is not None:
            found = load_safetensors(place / WEIGHTS)
            found |= {f"base_model.{key}": array for key, array in tensors.items()}
            save_safetensors(place / WEIGHTS, {key: array for key, array in found.items() if array is not None})
        entries = json.loads((place / CONFIG).read_text()) | config
        (place / CONFIG).write_text(json.dumps(entries))
        return place

    return copied


@pytest.mark.parametrize("kind", [VERA, ADALORA, FOLDER / "peft-adalora-ranks"])
def test_a_model_with_the_adapter_has_the_weights_that_peft_merges(kind):
    adapted = apply_peft(model(), kind)
    expected = load_safetensors(kind / "expected.safetensors")
    for name, weight in merged_weights(adapted).items():
        np.testing.assert_allclose(weight, expected[f"{name}.weight"], rtol=0, atol=5e-7)


def test_vera_becomes_vera_layers_that_train_their_vectors():
    adapted = apply_peft(model(np.float32), VERA)
    assert all(type(layer) is VeRAAdapter and layer.dtype == np.float32 for layer in adapted.layers)
    assert list(adapted.named_parameters()) == [
        "up.lora.vector_d",
        "up.lora.vector_b",
        "head.lora.vector_d",
        "head.lora.vector_b",
    ]
    up, head = (adapted[name].lora_layer for name in ("up", "head"))
    assert np.array_equal(head.projection_a, up.projection_a[: head.input_size])


def test_vera_is_written_and_read_again(tmp_path):
    adapted = apply_peft(model(np.float32), VERA)
    x = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    adapted.forward(x)
    adapted.backward(np.ones((3, 4), np.float32))
    adapted.update_parameters(0.1)
    save_peft(tmp_path / "vera", adapted, config={"task_type": "CAUSAL_LM"})
    assert peft_type(tmp_path / "vera") == "VERA"
    assert json.loads((tmp_path / "vera" / CONFIG).read_text())["task_type"] == "CAUSAL_LM"
    again = apply_peft(model(np.float32), tmp_path / "vera")
    assert bits(again.named_parameters()) == bits(adapted.named_parameters())
    assert np.array_equal(again.predict(x), adapted.predict(x))


def test_what_peft_wrote_is_written_again(tmp_path):
    save_peft(tmp_path / "vera", apply_peft(model(np.float32), VERA))
    assert bits(load_safetensors(tmp_path / "vera" / WEIGHTS)) == bits(load_safetensors(VERA / WEIGHTS))
    written, theirs = (json.loads((folder / CONFIG).read_text()) for folder in (tmp_path / "vera", VERA))
    assert written == {name: theirs.get(name) for name in written}
    assert written.keys() >= {"peft_type", "target_modules", "r", "save_projection", "projection_prng_key", "vera_dropout"}


def test_the_scaling_is_in_the_vector_of_the_outputs(tmp_path):
    base = Sequential({"a": DenseLayer(4, 3, rng=1)})
    adapted = apply_lora(base, lambda layer: VeRAAdapter(layer, 2, alpha=4.0, rng=0))
    adapted.set_parameters(np.arange(1.0, 6))
    save_peft(tmp_path / "vera", adapted)
    x = np.random.default_rng(0).normal(size=(3, 4))
    np.testing.assert_allclose(apply_peft(base, tmp_path / "vera").predict(x), adapted.predict(x), rtol=1e-14)


def test_layers_that_do_not_share_their_projections_are_refused(tmp_path):
    shared = Sequential({"a": DenseLayer(4, 4, rng=1), "b": DenseLayer(4, 4, rng=2)})
    save_peft(tmp_path / "shared", apply_lora(shared, lambda layer: VeRAAdapter(layer, 2, rng=0)))
    own = apply_lora(shared, VeRAAdapter, rank=2, rng=0)
    with pytest.raises(NotSupportedError, match="share projections, but A of 'b' is not part of that of 'a'"):
        save_peft(tmp_path / "own", own)
    own["b"].lora_layer.projection_a = own["a"].lora_layer.projection_a
    with pytest.raises(NotSupportedError, match="share projections, but B of 'b' is not part of that of 'a'"):
        save_peft(tmp_path / "own", own)
    assert not (tmp_path / "own").exists()


def test_other_things_that_train_are_refused(tmp_path):
    base = Sequential({"a": DenseLayer(4, 4, rng=1), "b": DenseLayer(4, 4, rng=2)})
    both = apply_lora(apply_lora(base, VeRAAdapter, ["a"], rank=2, rng=0), StandardLoRAAdapter, ["b"], rank=2, rng=0)
    with pytest.raises(NotSupportedError, match="holds VeRA layers alone, and 'b' trains too"):
        save_peft(tmp_path / "both", both)
    with pytest.raises(NotSupportedError, match=r"holds VeRA layers alone, and 'b\.weight' trains too"):
        save_peft(tmp_path / "both", apply_lora(base, VeRAAdapter, ["a"], train=["b"], rank=2, rng=0))


VERA_DAMAGES = {
    "no projection": ({"vera_A": None}, NotSupportedError, "contains no projections vera_A and vera_B"),
    "a projection of another rank": ({"vera_B": np.ones((5, 2))}, FormatError, r"must be \(r, in\) and \(out, r\), got"),
    "a projection that is no matrix": ({"vera_A": np.ones(3)}, NotSupportedError, "vera_A must be a matrix"),
    "no d": ({"model.up.vera_lambda_d": None}, FormatError, r"up\.vera_lambda_d is missing"),
    "no b": ({"model.up.vera_lambda_b": None}, FormatError, r"up\.vera_lambda_b is missing"),
    "a longer d": (
        {"model.up.vera_lambda_d": np.ones(4)},
        FormatError,
        r"d must have shape \(3,\) and b at most \(5,\), got \(4,\)",
    ),
    "a longer b": (
        {"model.up.vera_lambda_b": np.ones(6)},
        FormatError,
        r"d must have shape \(3,\) and b at most \(5,\), got \(3,\)",
    ),
    "no outputs": (
        {"model.up.vera_lambda_b": np.ones(0)},
        FormatError,
        r"d must have shape \(3,\) and b at most \(5,\), got \(3,\)",
    ),
    "b a matrix": (
        {"model.up.vera_lambda_b": np.ones((5, 1))},
        FormatError,
        r"d must have shape \(3,\) and b at most \(5,\)",
    ),
    "an unknown tensor": ({"model.up.bias": np.ones(5)}, FormatError, r"unexpected key 'base_model\.model\.up\.bias'"),
}


@pytest.mark.parametrize("damage", VERA_DAMAGES)
def test_a_damaged_vera_adapter_is_refused(folder, damage):
    tensors, error, message = VERA_DAMAGES[damage]
    place = folder(VERA, tensors)
    for read in (load_peft, lambda place: apply_peft(model(), place)):
        with pytest.raises(error, match=message) as caught:
            read(place)
        assert "does not fit the model" not in str(caught.value)


ADALORA_DAMAGES = {
    "no E": ({"model.up.lora_E": None}, {}, FormatError, r"up\.lora_E is missing"),
    "a longer E": ({"model.up.lora_E": np.ones((4, 1))}, {}, FormatError, r"lora_E must have shape \(3, 1\), got \(4, 1\)"),
    "another B": ({"model.up.lora_B": np.ones((5, 2))}, {}, FormatError, "matrix_a and matrix_b must be"),
    "no number": (
        None,
        {"init_r": "3"},
        FormatError,
        "init_r of the configuration must be a number of at least 0, got '3'",
    ),
    "a truth": (
        None,
        {"init_r": True},
        FormatError,
        "init_r of the configuration must be a number of at least 0, got True",
    ),
    "a negative alpha": (None, {"lora_alpha": -1}, FormatError, "lora_alpha of the configuration must be a number of at"),
    "a billion": (None, {"init_r": 10**9}, FormatError, "init_r of the configuration must be a number of at least 0"),
    "a huge number": (None, {"init_r": 10**400}, FormatError, "init_r of the configuration must be a number of at least 0"),
    "masks of numbers": (
        None,
        {"rank_pattern": {"up": 3}},
        FormatError,
        "rank_pattern must be a mapping from names to lists",
    ),
}


@pytest.mark.parametrize("damage", ADALORA_DAMAGES)
def test_a_damaged_adalora_adapter_is_refused(folder, damage):
    tensors, config, error, message = ADALORA_DAMAGES[damage]
    with pytest.raises(error, match=message):
        load_peft(folder(ADALORA, tensors, **config))


def test_a_layer_of_which_adalora_has_left_no_component_adds_nothing(folder):
    nothing = {"lora_A": np.ones((0, 6)), "lora_B": np.ones((5, 0)), "lora_E": np.ones((0, 1))}
    weights = load_peft(folder(ADALORA, {f"model.up.{name}": array for name, array in nothing.items()}))
    assert weights.delta("up").shape == (6, 5)
    assert not weights.delta("up").any()


def test_adalora_without_alpha_has_the_scaling_one_over_almost_one(folder):
    weights = load_peft(folder(ADALORA, lora_alpha=0))
    assert weights.layers["up"].scaling == pytest.approx(3 / (3 + 1e-5), rel=1e-15)


def test_the_defaults_of_adalora(folder):
    place = folder(ADALORA)
    config = json.loads((place / CONFIG).read_text())
    del config["init_r"], config["lora_alpha"]
    (place / CONFIG).write_text(json.dumps(config))
    assert load_peft(place).layers["up"].scaling == pytest.approx(8 / (12 + 1e-5), rel=1e-15)


@pytest.mark.parametrize(
    ("sizes", "message"), [((7, 5), "5 outputs and at most 6 inputs"), ((6, 4), "the layer is 6 -> 4")]
)
def test_vera_that_does_not_fit_the_model_is_refused(sizes, message):
    other = Sequential({"up": DenseLayer(*sizes, rng=0), "head": DenseLayer(sizes[1], 4, rng=0)})
    with pytest.raises(FormatError, match=rf"peft-vera: does not fit the model: up: .*{message}"):
        apply_peft(other, VERA)


def test_vera_cannot_be_a_task():
    with pytest.raises(NotSupportedError, match="'b' is VeRA, which cannot be a task of MultiLoRA"):
        apply_peft(model(), {"a": FOLDER / "peft-lora", "b": VERA})


def test_the_type_of_a_damaged_configuration_is_unknown(tmp_path):
    (tmp_path / CONFIG).write_text("[]")
    assert peft_type(tmp_path) == ""
    (tmp_path / CONFIG).write_text("{")
    assert peft_type(tmp_path) == ""


def test_a_layer_that_the_base_lacks_keeps_the_inputs_of_the_projection():
    weights = load_peft(VERA)
    assert with_base_sizes(weights, FOLDER / "bases" / "unet.safetensors").layers == weights.layers
    assert with_base_sizes(weights, FOLDER / "bases" / "net.safetensors").layers["head"].input_size == 5


def test_a_base_may_store_transposed_weights(folder, tmp_path):
    weights = load_peft(folder(VERA, fan_in_fan_out=True))
    save_safetensors(tmp_path / "base", {"up.weight": np.zeros((6, 5)), "head.weight": np.zeros((5, 4))})
    layers = with_base_sizes(weights, tmp_path / "base").layers
    assert {path: layer.input_size for path, layer in layers.items()} == {"up": 6, "head": 5}


def test_a_changed_base_is_refused(folder):
    place = folder(VERA, init_lora_weights="pissa")
    for read in (load_peft, lambda place: apply_peft(model(), place)):
        with pytest.raises(NotSupportedError, match="init_lora_weights='pissa' has changed the base's weights"):
            read(place)


def test_the_dropout_is_kept(folder, tmp_path):
    place = folder(VERA, vera_dropout=0.25)
    adapted = apply_peft(model(), place)
    assert {layer.dropout for layer in load_peft(place).layers.values()} == {0.25}
    assert {layer.lora_layer.dropout for layer in adapted.layers} == {0.25}
    save_peft(tmp_path / "again", adapted)
    assert json.loads((tmp_path / "again" / CONFIG).read_text())["vera_dropout"] == 0.25
    assert {layer.lora_layer.dropout for layer in apply_peft(model(), folder(VERA, vera_dropout=None)).layers} == {0.0}


@pytest.mark.parametrize("outputs", [1, 5])
def test_a_layer_has_any_number_of_outputs_up_to_that_of_the_projection(folder, outputs):
    place = folder(VERA, {"model.up.vera_lambda_b": np.ones(outputs, np.float32)})
    assert load_peft(place).layers["up"].output_size == outputs
