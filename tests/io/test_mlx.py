"""Adapters of mlx-lm, constructed by hand."""

import json

import numpy as np
import pytest

from lora_np import ArgumentError, FormatError, LoRALayer, NotSupportedError
from lora_np.factors.weights import AdapterWeights
from lora_np.io.mlx import CONFIG, WEIGHTS, load_mlx, save_mlx
from lora_np.io.safetensors import save_safetensors
from tests.kinds import batch

PATH = "model.layers.0.self_attn.q_proj"
A, B = batch(5, 2), batch(2, 4, seed=2)
FACTORS = {f"{PATH}.lora_a": A, f"{PATH}.lora_b": B}
SETTINGS = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": {"rank": 2, "scale": 20.0, "dropout": 0.0}}


@pytest.fixture
def load(tmp_path):
    """Load a folder with changed tensors and the given configuration; None omits a tensor or the configuration."""

    def loaded(changes, settings=SETTINGS, **options):
        if settings is not None:
            (tmp_path / CONFIG).write_text(settings if isinstance(settings, str) else json.dumps(settings))
        tensors = {key: array for key, array in (FACTORS | changes).items() if array is not None}
        save_safetensors(tmp_path / WEIGHTS, tensors)
        return load_mlx(tmp_path, **options)

    return loaded


def test_factors_are_stored_in_the_layout_of_lora_np(load):
    layer = load({}).layers[PATH]
    assert np.array_equal(layer.matrix_a, A)
    assert np.array_equal(layer.matrix_b, B)


def test_scale_is_the_factor_itself(load):
    weights = load({})
    assert weights.layers[PATH].scaling == 20
    assert np.array_equal(weights.delta(PATH), 20 * (A @ B))


@pytest.mark.parametrize("scale", [0, 0.1, 20])
def test_layers_of_different_ranks_have_the_same_scale(load, scale):
    more = {"head.lora_a": batch(4, 3), "head.lora_b": batch(3, 6)}
    layers = load(more, {"lora_parameters": {"scale": scale}}).layers
    assert {path: layer.rank for path, layer in layers.items()} == {PATH: 2, "head": 3}
    for layer in layers.values():
        assert layer.scaling == pytest.approx(scale, rel=1e-15)


def test_m_is_the_magnitude_of_dora(load):
    assert not load({}).magnitudes
    assert np.array_equal(load({f"{PATH}.m": np.arange(4.0)}).magnitudes[PATH], np.arange(4))


TENSORS = {
    "no A": ({f"{PATH}.lora_a": None}, FormatError, r"lora_a is missing"),
    "no B": ({f"{PATH}.lora_b": None}, FormatError, r"lora_b is missing"),
    "m alone": ({"head.m": np.ones(4)}, FormatError, r"head\.lora_a is missing"),
    "different ranks": ({f"{PATH}.lora_b": np.ones((3, 4))}, FormatError, r"q_proj: matrix_a and matrix_b must be"),
    "a magnitude of a wrong shape": (
        {f"{PATH}.m": np.ones(5)},
        FormatError,
        r"q_proj\.m must have shape \(4,\), got \(5,\)",
    ),
    "experts": (
        {f"{PATH}.lora_a": np.ones((8, 5, 2))},
        NotSupportedError,
        r"lora_a must be a matrix, got shape \(8",
    ),
    "a stray key": ({"head.bias": np.ones(4)}, FormatError, r"unexpected key 'head\.bias': not a LoRA factor"),
}


@pytest.mark.parametrize("damage", TENSORS)
def test_damaged_weights_are_rejected(load, damage):
    changes, error, message = TENSORS[damage]
    with pytest.raises(error, match=rf"adapters\.safetensors: .*{message}"):
        load(changes)


CONFIGS = {
    "none": None,
    "not JSON": "{",
    "too deep": "[" * 200_000,
    "a list": [],
    "no parameters": {},
    "no scale": {"lora_parameters": {}},
    "parameters as a list": {"lora_parameters": [20.0]},
    "scale as text": {"lora_parameters": {"scale": "large"}},
    "null scale": {"lora_parameters": {"scale": None}},
    "a true scale": {"lora_parameters": {"scale": True}},
    "a scale in digits": {"lora_parameters": {"scale": "20"}},
    "a scale beyond floats": {"lora_parameters": {"scale": 10**400}},
}


@pytest.mark.parametrize("damage", CONFIGS)
def test_a_damaged_configuration_is_rejected(load, damage):
    with pytest.raises(FormatError, match=r"adapter_config\.json: must be valid JSON with lora_parameters\.scale"):
        load({}, CONFIGS[damage])


@pytest.mark.parametrize("scale", [-1, float("nan"), float("inf")])
def test_an_invalid_scale_is_rejected(load, scale):
    with pytest.raises(FormatError, match=r"q_proj: alpha must be"):
        load({}, {"lora_parameters": {"scale": scale}})


def test_a_stray_key_can_be_ignored(load):
    assert set(load({"head.bias": np.ones(4)}, drop="head.bias").layers) == {PATH}


def test_a_folder_without_weights_is_rejected(tmp_path):
    (tmp_path / CONFIG).write_text(json.dumps(SETTINGS))
    with pytest.raises(FormatError, match=r": adapters\.safetensors not found"):
        load_mlx(tmp_path)


def test_other_kinds_of_tuning_are_refused(load):
    with pytest.raises(NotSupportedError, match=r"json: fine_tune_type must be 'lora' or 'dora', got 'full'"):
        load({}, SETTINGS | {"fine_tune_type": "full"})


# ---------------------------------------------------------------- writing


def adapter(**layers):
    return {path.replace("__", "."): LoRALayer(5, 4, *choices, rng=0) for path, choices in layers.items()}


def test_the_configuration_names_the_modules_of_a_block(tmp_path):
    layers = adapter(model__layers__3__mlp__up=(2, 3.0), model__layers__11__mlp__up=(2, 3.0), lm_head=(2, 3.0))
    save_mlx(tmp_path / "a", AdapterWeights(layers))
    config = json.loads((tmp_path / "a" / CONFIG).read_text())
    assert config["lora_parameters"] == {"rank": 2, "scale": 1.5, "dropout": 0.0, "keys": ["lm_head", "mlp.up"]}
    assert (config["fine_tune_type"], config["num_layers"]) == ("lora", -1)
    assert set(load_mlx(tmp_path / "a").layers) == set(layers)


def test_dora_is_written(tmp_path):
    save_mlx(tmp_path / "a", AdapterWeights(adapter(q=(2,)), {"q": np.arange(4.0)}))
    assert json.loads((tmp_path / "a" / CONFIG).read_text())["fine_tune_type"] == "dora"
    assert np.array_equal(load_mlx(tmp_path / "a").magnitudes["q"], np.arange(4))


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        (AdapterWeights(adapter(a=(2,), b=(1,))), NotSupportedError, "has one rank, but 'a' has 2 and 'b' 1"),
        (
            AdapterWeights(adapter(a=(2, 2.0), b=(2, 3.0))),
            NotSupportedError,
            r"has one scaling, but 'a' has 1\.0 and 'b' 1\.5",
        ),
        (AdapterWeights(adapter(a=(2,), b=(2,)), {"a": np.ones(4)}), NotSupportedError, "or on none, and 'b' is not"),
        (AdapterWeights(adapter(a=(2,)), kernels={"a": (1,)}), NotSupportedError, "cannot hold the convolution 'a'"),
        (AdapterWeights({}), ArgumentError, "weights must contain at least one layer, got none"),
    ],
)
def test_what_the_format_cannot_hold_is_named(tmp_path, weights, error, message):
    with pytest.raises(error, match=message):
        save_mlx(tmp_path / "a", weights)
    assert not list(tmp_path.iterdir())


def test_the_folder_must_be_a_path():
    with pytest.raises(ArgumentError, match=r"^folder must be"):
        save_mlx(3, AdapterWeights(adapter(a=(2,))))


@pytest.mark.parametrize("kind", ["lora_a", "lora_b"])
def test_factors_must_be_floating_point(load, kind):
    key = f"{PATH}.{kind}"
    with pytest.raises(FormatError, match=f"{kind} must have floating-point elements, got int64"):
        load({key: FACTORS[key].astype(np.int64)})
