"""Files of kohya's sd-scripts, constructed by hand."""

import numpy as np
import pytest

from lora_np import FormatError, NotSupportedError
from lora_np.io.kohya import load_kohya
from lora_np.io.safetensors import save_safetensors
from tests.kinds import batch

DOWN, UP = batch(2, 5), batch(4, 2, seed=2)
UNET = {
    "lora_unet_mid_to_k.lora_down.weight": DOWN,
    "lora_unet_mid_to_k.lora_up.weight": UP,
    "lora_unet_mid_to_k.alpha": np.array(3.0),
}
TEXT = {"lora_te.x.lora_down.weight": batch(1, 6), "lora_te.x.lora_up.weight": batch(3, 1)}


@pytest.fixture
def load(tmp_path):
    """Load a file with the given tensors; None omits a tensor."""

    def loaded(tensors, dtypes=None, **options):
        file = tmp_path / "lora.safetensors"
        save_safetensors(file, {key: array for key, array in tensors.items() if array is not None}, dtypes=dtypes)
        return load_kohya(file, **options)

    return loaded


def test_down_is_a_and_up_is_b(load):
    layer = load(UNET).layers["lora_unet_mid_to_k"]
    assert np.array_equal(layer.matrix_a, DOWN.T)
    assert np.array_equal(layer.matrix_b, UP.T)


def test_the_delta_is_scaled_by_alpha_over_the_rank(load):
    assert np.allclose(load(UNET).delta("lora_unet_mid_to_k"), 3 / 2 * (UP @ DOWN).T, rtol=1e-14, atol=0)


@pytest.mark.parametrize("alpha", [3.0, 0.0, np.float16(0.5), np.int64(4)])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_alpha_is_one_number(load, alpha, shape):
    layer = load(UNET | {"lora_unet_mid_to_k.alpha": np.full(shape, alpha)}).layers["lora_unet_mid_to_k"]
    assert layer.alpha == alpha
    assert layer.scaling == alpha / 2


def test_alpha_defaults_to_the_rank(load):
    assert load(UNET | {"lora_unet_mid_to_k.alpha": None}).layers["lora_unet_mid_to_k"].scaling == 1


def test_every_module_is_loaded(load):
    assert set(load(UNET | TEXT).layers) == {"lora_unet_mid_to_k", "lora_te.x"}


@pytest.mark.parametrize(("stored", "dtype"), [("F16", "f4"), ("BF16", "f4"), ("F32", "f4"), ("F64", "f8")])
def test_short_dtypes_become_float32(load, stored, dtype):
    assert load(UNET, dict.fromkeys(UNET, stored)).layers["lora_unet_mid_to_k"].dtype == dtype


DAMAGES = {
    "no down": ({"lora_down.weight": None}, FormatError, r"lora_down\.weight is missing"),
    "no up": ({"lora_up.weight": None}, FormatError, r"lora_up\.weight is missing"),
    "alpha alone": ({"lora_up.weight": None, "lora_down.weight": None}, FormatError, r"lora_down\.weight is missing"),
    "different ranks": ({"lora_up.weight": np.ones((4, 3))}, FormatError, "matrix_a and matrix_b must be"),
    "two alphas": ({"alpha": np.ones(2)}, FormatError, r"alpha must be one number, got shape \(2,\)"),
    "no alpha": ({"alpha": np.ones(0)}, FormatError, r"alpha must be one number, got shape \(0,\)"),
    "a negative alpha": ({"alpha": np.array(-1.0)}, FormatError, "alpha must be a number of at least 0, got -1"),
    "alpha not a number": ({"alpha": np.array(np.nan)}, FormatError, "alpha must be a number of at least 0, got nan"),
    "an infinite alpha": ({"alpha": np.array(np.inf)}, FormatError, "alpha must be finite"),
    "a convolution": (
        {"lora_down.weight": np.ones((2, 5, 3, 3))},
        NotSupportedError,
        r"must be a matrix, got shape \(2, 5",
    ),
    "a convolution up": ({"lora_up.weight": np.ones((4, 2, 1, 1))}, NotSupportedError, r"lora_up\.weight must be a matrix"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_module_is_rejected(load, damage):
    changes, error, message = DAMAGES[damage]
    with pytest.raises(error, match=rf"lora\.safetensors: lora_unet_mid_to_k.*{message}"):
        load(UNET | {f"lora_unet_mid_to_k.{name}": array for name, array in changes.items()})


STRAY = {"lora_unet_mid_to_k.dora_scale": np.ones(4)}


def test_a_stray_key_is_rejected(load):
    with pytest.raises(
        FormatError, match=r"lora\.safetensors: unexpected key 'lora_unet_mid_to_k\.dora_scale': not a LoRA factor"
    ):
        load(UNET | STRAY)


def test_a_stray_key_can_be_ignored(load):
    assert set(load(UNET | STRAY, drop="*.dora_scale").layers) == {"lora_unet_mid_to_k"}


@pytest.mark.parametrize("tensors", [{}, STRAY])
def test_a_file_without_factors_is_rejected(load, tensors):
    with pytest.raises(FormatError, match="contains no LoRA factors"):
        load(tensors, drop="*.dora_scale")
