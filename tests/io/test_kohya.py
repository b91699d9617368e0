"""Files of kohya's sd-scripts, constructed by hand."""

import numpy as np
import pytest

from lora_np import ArgumentError, FormatError, LoRALayer, NotSupportedError
from lora_np.factors.weights import AdapterWeights, Rows
from lora_np.io.kohya import load_kohya, save_kohya
from lora_np.io.safetensors import SafetensorsFile, save_safetensors
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


MIDDLE = {
    "lora_down.weight": np.ones((2, 5, 1, 1)),
    "lora_mid.weight": np.ones((2, 2, 3, 3)),
    "lora_up.weight": np.ones((4, 2, 1, 1)),
}
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
    "one factor of a convolution": (
        {"lora_down.weight": np.ones((2, 5, 3, 3))},
        FormatError,
        r"got \(2, 5, 3, 3\) and \(4, 2",
    ),
    "a kernel in the second factor": (
        {"lora_down.weight": np.ones((2, 5, 3, 3)), "lora_up.weight": np.ones((4, 2, 3, 3))},
        NotSupportedError,
        r"second factor must have a kernel of size 1, got shape \(4, 2, 3, 3\)",
    ),
    "half a kernel in the second factor": (
        {"lora_down.weight": np.ones((2, 5, 3, 3)), "lora_up.weight": np.ones((4, 2, 3, 1))},
        NotSupportedError,
        r"second factor must have a kernel of size 1, got shape \(4, 2, 3, 1\)",
    ),
    "six axes": (
        {"lora_down.weight": np.ones((2, 5, 1, 1, 1, 1)), "lora_up.weight": np.ones((4, 2, 1, 1, 1, 1))},
        FormatError,
        r"factors must be \(r, in, \*kernel\)",
    ),
    "another rank of a convolution": (
        {"lora_down.weight": np.ones((3, 5, 3, 3)), "lora_up.weight": np.ones((4, 2, 1, 1))},
        FormatError,
        "matrix_a and matrix_b must be",
    ),
    "vectors": (
        {"lora_down.weight": np.ones(2), "lora_up.weight": np.ones(2)},
        FormatError,
        r"got \(2,\) and \(2,\)",
    ),
    "groups": (
        {"lora_down.weight": np.ones((2, 5, 3, 3)), "lora_up.weight": np.ones((4, 1, 1, 1))},
        NotSupportedError,
        "a convolution in groups cannot be merged",
    ),
    "a middle without kernel": ({"lora_mid.weight": np.ones((2, 2))}, FormatError, r"lora_down, lora_mid and lora_up must"),
    "a middle of another rank": (
        MIDDLE | {"lora_mid.weight": np.ones((2, 3, 3, 3))},
        FormatError,
        r"\(r, in, 1, \.\.\.\), \(q, r, \*kernel\) and",
    ),
    "a middle after a kernel": (
        MIDDLE | {"lora_down.weight": np.ones((2, 5, 3, 3))},
        NotSupportedError,
        "beside lora_mid, lora_down must have a kernel of size 1",
    ),
    "a middle after half a kernel": (
        MIDDLE | {"lora_down.weight": np.ones((2, 5, 3, 1))},
        NotSupportedError,
        "beside lora_mid, lora_down must have a kernel of size 1",
    ),
    "a middle alone": (
        {"lora_mid.weight": np.ones((2, 2, 3, 3)), "lora_up.weight": None},
        FormatError,
        r"lora_up\.weight is missing",
    ),
    "a scale of another size": ({"dora_scale": np.ones((5, 1))}, FormatError, r"dora_scale must have shape \(4, 1\)"),
    "a scale that is a number": ({"dora_scale": np.ones(())}, FormatError, r"dora_scale must have shape \(4, 1\)"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_module_is_rejected(load, damage):
    changes, error, message = DAMAGES[damage]
    with pytest.raises(error, match=rf"lora\.safetensors: lora_unet_mid_to_k.*{message}"):
        load(UNET | {f"lora_unet_mid_to_k.{name}": array for name, array in changes.items()})


def test_a_middle_of_one_dimension(load):
    factors = {"lora_down": batch(2, 5, 1), "lora_mid": batch(3, 2, 4), "lora_up": batch(6, 3, 1)}
    weights = load({f"conv.{name}.weight": array for name, array in factors.items()})
    assert weights.kernels == {"conv": (4,)}
    whole = np.einsum("oq,qrk,ri->oik", factors["lora_up"][..., 0], factors["lora_mid"], factors["lora_down"][..., 0])
    np.testing.assert_allclose(weights.delta("conv").T, whole.reshape(6, -1), rtol=0, atol=1e-12)


def test_each_pattern_to_drop_is_text(load):
    with pytest.raises(ArgumentError, match="each of drop must be"):
        load(UNET, drop=["*.scalar", 3])


STRAY = {"lora_unet_mid_to_k.scalar": np.ones(())}


def test_a_stray_key_is_rejected(load):
    with pytest.raises(
        FormatError, match=r"lora\.safetensors: unexpected key 'lora_unet_mid_to_k\.scalar': not a LoRA factor"
    ):
        load(UNET | STRAY)


def test_a_stray_key_can_be_ignored(load):
    assert set(load(UNET | STRAY, drop="*.scalar").layers) == {"lora_unet_mid_to_k"}


@pytest.mark.parametrize("tensors", [{}, STRAY])
def test_a_file_without_factors_is_rejected(load, tensors):
    with pytest.raises(FormatError, match="contains no LoRA factors"):
        load(tensors, drop="*.scalar")


def test_a_scale_of_the_outputs_is_the_magnitude_of_dora(load):
    weights = load(UNET | {"lora_unet_mid_to_k.dora_scale": np.arange(4.0)[:, None]})
    assert np.array_equal(weights.magnitudes["lora_unet_mid_to_k"], np.arange(4))


# ---------------------------------------------------------------- writing


def plain(*paths, **more):
    layers = {path: LoRALayer.from_factors(DOWN.T, UP.T, 3.0) for path in paths}
    return AdapterWeights(layers, **{name: dict.fromkeys(paths, value) for name, value in more.items()})


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["unet.a.to_out.0"], ["lora_unet_a_to_out_0"]),
        (["transformer.a.b"], ["lora_transformer_a_b"]),
        (["text_encoder.a"], ["lora_te_a"]),
        (["text_encoder.a", "text_encoder_2.a"], ["lora_te1_a", "lora_te2_a"]),
        (["text_encoder_3.a"], ["lora_te3_a"]),
        (["lora_te1_a", "lora_unet_b_c"], ["lora_te1_a", "lora_unet_b_c"]),
    ],
)
def test_components_become_prefixes(tmp_path, paths, names):
    save_kohya(tmp_path / "a.safetensors", plain(*paths))
    assert sorted(load_kohya(tmp_path / "a.safetensors").layers) == sorted(names)


@pytest.mark.parametrize("path", ["model.layers.0.q_proj", "", "lora_unet_a.b", "vae.decoder"])
def test_a_path_without_a_component_is_refused(tmp_path, path):
    with pytest.raises(ArgumentError, match=f"must begin with a component of a pipeline .*, got {path!r}"):
        save_kohya(tmp_path / "a.safetensors", plain("unet.a", path))
    assert not list(tmp_path.iterdir())


def test_a_component_that_no_pipeline_has_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match=r"component must be one of unet, .*, got 'vae'"):
        save_kohya(tmp_path / "a.safetensors", plain("unet.a"), component="vae")


def test_paths_of_the_same_name_are_refused(tmp_path):
    message = "'unet.a_b.c' and 'unet.a.b_c' have the same name in kohya's format, 'lora_unet_a_b_c'"
    with pytest.raises(ArgumentError, match=message):
        save_kohya(tmp_path / "a.safetensors", plain("unet.a_b.c", "unet.a.b_c"))


@pytest.mark.parametrize(("alpha", "dtype"), [(3.0, "F32"), (0.1, "F64")])
def test_alpha_is_written_without_rounding(tmp_path, alpha, dtype):
    save_kohya(tmp_path / "a.safetensors", AdapterWeights({"unet.a": LoRALayer(4, 3, 2, alpha)}))
    with SafetensorsFile(tmp_path / "a.safetensors") as file:
        assert file.info("lora_unet_a.alpha").dtype == dtype
    assert load_kohya(tmp_path / "a.safetensors").layers["lora_unet_a"].alpha == alpha


@pytest.mark.parametrize(
    ("path", "more", "message"),
    [
        ("unet.a", {"whole": np.ones(2)}, "the kohya format cannot hold the whole tensor 'unet.a'"),
        ("unet.a", {"biases": np.ones(4)}, "cannot hold the change of the bias of 'unet.a'"),
        ("unet.a", {"rows": Rows(np.arange(1), np.ones((1, 4)))}, "cannot hold the replaced rows of 'unet.a'"),
    ],
)
def test_what_the_format_cannot_hold_is_named(tmp_path, path, more, message):
    with pytest.raises(NotSupportedError, match=message):
        save_kohya(tmp_path / "a.safetensors", plain(path, **more))
    with pytest.raises(NotSupportedError, match=r"the whole tensor 'a' and 1 more$"):
        save_kohya(tmp_path / "a.safetensors", AdapterWeights(plain(path).layers, whole={"b": UP, "a": UP}))
    assert not list(tmp_path.iterdir())


def test_a_changed_base_and_no_layer_are_refused(tmp_path):
    with pytest.raises(NotSupportedError, match="cannot hold the changed base of init_lora_weights='pissa'"):
        save_kohya(
            tmp_path / "a.safetensors", AdapterWeights(plain("unet.a").layers, config={"init_lora_weights": "pissa"})
        )
    with pytest.raises(ArgumentError, match="weights must contain at least one layer, got none"):
        save_kohya(tmp_path / "a.safetensors", AdapterWeights({}))
