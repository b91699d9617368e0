"""``convert`` between formats, and ``merge`` and ``inspect`` of files for image models."""

import json
import os

import numpy as np
import pytest

from lora_np import NotSupportedError, save_layer
from lora_np.cli._adapters import find_adapters
from lora_np.factors.weights import AdapterWeights
from lora_np.io import load_diffusers, load_kohya, load_mlx, load_peft
from lora_np.io.safetensors import load_safetensors
from tests.cli.toolbox import dylora, multilora, weights, write_kohya, write_peft
from tests.io.kinds import FOLDER, base_of, loaded, place, same

PIPELINE = place("kohya-pipeline")


@pytest.fixture
def quiet(capsys):
    """Run a verb and return its output and its notes."""

    def run(*arguments, code=0):
        from lora_np.cli import main

        assert main([str(argument) for argument in arguments]) == code
        captured = capsys.readouterr()
        return captured.out, captured.err

    return run


def test_a_kohya_file_becomes_a_peft_folder_for_each_component(tmp_path, run, run_json):
    out = run("convert", PIPELINE, "-o", tmp_path / "out", "--base", base_of("kohya-pipeline"))
    assert out.endswith(": 3 adapters\n")
    assert sorted(os.listdir(tmp_path / "out")) == ["text_encoder", "text_encoder_2", "unet"]
    expected = loaded("kohya-pipeline")
    for component in os.listdir(tmp_path / "out"):
        for path, layer in load_peft(tmp_path / "out" / component).layers.items():
            assert np.array_equal(layer.merge_weights(), expected.delta(f"{component}.{path}"))
    report = run_json("convert", PIPELINE, "-o", tmp_path / "out", "--base", base_of("kohya-pipeline"), "--force")
    assert (report["format"], [one["name"] for one in report["adapters"]]) == (
        "peft",
        ["text_encoder", "text_encoder_2", "unet"],
    )


def test_one_component_becomes_the_folder_itself(tmp_path, run):
    run("convert", place("kohya-unet"), "-o", tmp_path / "out", "--base", base_of("kohya-unet"))
    assert same(load_peft(tmp_path / "out"), loaded("kohya-unet"))


def test_kohya_to_diffusers_and_back(tmp_path, run):
    run("convert", PIPELINE, "--to", "diffusers", "-o", tmp_path / "a.safetensors", "--base", base_of("kohya-pipeline"))
    assert same(load_diffusers(tmp_path / "a.safetensors"), loaded("kohya-pipeline"))
    run("convert", tmp_path / "a.safetensors", "--to", "kohya", "-o", tmp_path / "b.safetensors")
    assert same(load_kohya(tmp_path / "b.safetensors"), load_kohya(PIPELINE))


def test_a_kohya_file_to_kohya_needs_no_base(tmp_path, run):
    run("convert", PIPELINE, "--to", "kohya", "-o", tmp_path / "a.safetensors")
    assert same(load_kohya(tmp_path / "a.safetensors"), load_kohya(PIPELINE))


@pytest.mark.parametrize("target", ["kohya", "diffusers"])
def test_peft_to_a_file_with_a_component(tmp_path, run, fail, target):
    source = write_peft(tmp_path / "in", weights())
    message = fail("convert", source, "--to", target, "-o", tmp_path / "a.safetensors")
    assert message.startswith(f"{tmp_path / 'a.safetensors'}: paths of layers must begin with a component of a pipeline")
    assert message.endswith(", got 'first'; --component gives it")
    run("convert", source, "--to", target, "--component", "unet", "-o", tmp_path / "a.safetensors")
    names = list((load_kohya if target == "kohya" else load_diffusers)(tmp_path / "a.safetensors").layers)
    assert names == (["lora_unet_first", "lora_unet_second"] if target == "kohya" else ["unet.first", "unet.second"])


def test_peft_to_mlx_and_back(tmp_path, run):
    source = write_peft(tmp_path / "in", weights())
    run("convert", source, "--to", "mlx", "-o", tmp_path / "mlx")
    assert same(load_mlx(tmp_path / "mlx"), weights())
    run("convert", tmp_path / "mlx", "-o", tmp_path / "out")
    assert same(load_peft(tmp_path / "out"), weights())


def test_diffusers_to_mlx(tmp_path, quiet, fail):
    _, notes = quiet("convert", place("diffusers-flux"), "--to", "mlx", "-o", tmp_path / "mlx")
    assert "no alpha is stored, so it is taken to be the rank; --alpha gives another" in notes
    assert load_mlx(tmp_path / "mlx").layers.keys() == {
        "transformer_blocks.0.attn.to_q",
        "single_transformer_blocks.0.attn.to_k",
    }
    message = fail("convert", PIPELINE, "--to", "mlx", "-o", tmp_path / "x", "--base", base_of("kohya-pipeline"))
    assert message.endswith("an mlx-lm adapter is for one model, and this is for text_encoder, text_encoder_2, unet")


def test_alpha_can_be_given(tmp_path, run):
    run("convert", place("peft-bare"), "--alpha", "3", "-o", tmp_path / "out")
    assert same(load_peft(tmp_path / "out"), loaded("peft-lora"))


def test_names_and_sizes_that_a_file_does_not_tell(tmp_path, quiet):
    out, error = quiet("convert", PIPELINE, "-o", tmp_path / "x", code=1)
    assert error.endswith(f"{PIPELINE}: the file does not tell the module names of the layers; --base gives them\n")
    out, error = quiet("convert", FOLDER / "peft-vera", "-o", tmp_path / "x", code=1)
    assert error.endswith("peft-vera: the file does not tell the input sizes of the layers; --base gives them\n")
    assert not out
    quiet("convert", FOLDER / "peft-vera", "-o", tmp_path / "x", "--base", base_of("peft-vera"))
    assert same(load_peft(tmp_path / "x"), loaded("peft-vera"))


def test_options_without_a_meaning_are_refused(tmp_path, fail):
    source = write_peft(tmp_path / "in")
    message = fail("convert", source, "--to", "mlx", "--base", base_of("peft-lora"), "-o", tmp_path / "x")
    assert message == f"{source}: --base is for files that do not name their modules, and this one does"
    message = fail("convert", source, "--component", "unet", "-o", tmp_path / "x")
    assert message == f"{source}: --component is for image models, and neither this nor peft is for one"


def test_a_component_for_names_that_do_not_tell_it(tmp_path, run):
    source = write_kohya(tmp_path / "a.safetensors")
    run("convert", source, "-o", tmp_path / "out")
    assert load_peft(tmp_path / "out").layers.keys() == {"first", "second"}


@pytest.mark.parametrize("target", ["kohya", "mlx", "diffusers"])
def test_formats_of_one_adapter(tmp_path, run, fail, target):
    save_layer(multilora(), tmp_path / "model.npz")
    message = fail("convert", tmp_path / "model.npz", "--to", target, "-o", tmp_path / "out")
    assert message.endswith("contains several adapters: french, german; choose one with --task")
    component = [] if target == "mlx" else ["--component", "unet"]
    run("convert", tmp_path / "model.npz", "--to", target, "--task", "german", "-o", tmp_path / "out", *component)


def test_what_a_format_cannot_hold(tmp_path, run, fail):
    save_layer(dylora(), tmp_path / "model.npz")
    message = fail("convert", tmp_path / "model.npz", "--to", "mlx", "-o", tmp_path / "out")
    assert message == f"{tmp_path / 'out'}: the mlx-lm format cannot hold the DyLoRA ranks of 'first' and 1 more"
    run("convert", tmp_path / "model.npz", "--to", "mlx", "--rank", "2", "-o", tmp_path / "out")
    assert load_mlx(tmp_path / "out").layers["first"].rank == 2
    message = fail("convert", FOLDER / "peft-modules-to-save", "--to", "mlx", "-o", tmp_path / "x")
    assert message.endswith("the mlx-lm format cannot hold the whole tensor 'head.bias' and 1 more")
    assert not (tmp_path / "x").exists()


# ---------------------------------------------------------------- merge and inspect


def test_merge_matches_the_names_of_the_base(tmp_path, run, fail, quiet):
    run("merge", base_of("kohya-pipeline"), PIPELINE, "-o", tmp_path / "out.safetensors", "--verify")
    merged = load_safetensors(tmp_path / "out.safetensors")
    for key, tensor in load_safetensors(FOLDER / "kohya-pipeline" / "expected.safetensors").items():
        np.testing.assert_allclose(merged[key], tensor, rtol=0, atol=5e-7)
    message = fail("merge", base_of("kohya-unet"), PIPELINE, "-o", tmp_path / "x.safetensors")
    assert "no module has the name of 'lora_te1_text_model_encoder" in message
    assert message.endswith("_self_attn_q_proj.*' would leave it out")
    assert "which the adapter changes; --drop 'lora_te1_text_model_encoder" in message
    _, notes = quiet("merge", base_of("kohya-unet"), PIPELINE, "-o", tmp_path / "x.safetensors", "--drop", "lora_te*")
    assert notes.count(": dropped lora_te") == 6


def test_a_residual_base_must_be_confirmed(tmp_path, run, fail):
    folder, base = FOLDER / "peft-pissa", base_of("peft-pissa")
    message = fail("merge", base, folder, "-o", tmp_path / "out.safetensors")
    assert message.endswith("--base-is-residual means that the base has the changed weights")
    run("merge", base, folder, "-o", tmp_path / "out.safetensors", "--base-is-residual")
    assert "energy at r/2" in run("inspect", folder)
    run("diff", folder, folder)
    assert "init_lora_weights='pissa' has changed" in fail("convert", folder, "-o", tmp_path / "x")
    with pytest.raises(NotSupportedError, match="has changed"):
        find_adapters(str(folder)).read("")


def test_other_kinds_are_named(tmp_path, run, fail):
    for name, kind in {"lycoris-loha": "LoHa", "lycoris-ia3": "IA3", "lycoris-oft": "OFT"}.items():
        message = fail("merge", base_of(name), place(name), "-o", tmp_path / "x.safetensors")
        assert message == f"{place(name)}: its kind is {kind}, which is not a pair of factors for each matrix"
        assert f"not understood as an adapter:\n{message}" in run("inspect", place(name))


def test_inspect_says_that_alpha_is_assumed(quiet):
    out, notes = quiet("inspect", place("peft-bare"), "--json")
    assert (
        notes
        == f"lora-np: {place('peft-bare')}: no alpha is stored, so it is taken to be the rank; --alpha gives another\n"
    )
    assert json.loads(out)["kind"] == "PEFT weights without adapter_config.json"
    out, notes = quiet("inspect", place("peft-bare"), "--alpha", "3")
    assert notes == ""


def test_kernels_of_convolutions_are_shown_and_compared(tmp_path, run, run_json):
    folder = FOLDER / "peft-linear-and-conv"
    out = run("inspect", folder)
    assert "convolution, kernel 3 x 2 (conv): in counts the elements of a patch" in out
    assert "convolution, kernel 3 (wave): in counts" in out
    kernels = {layer["path"]: layer.get("kernel") for layer in run_json("inspect", folder)["adapters"][0]["layers"]}
    assert kernels == {"up": None, "conv": [3, 2], "wave": [3]}
    layers = {"a": weights().layers["first"]}
    write_peft(tmp_path / "a", AdapterWeights(layers, kernels={"a": (3, 1)}))
    write_peft(tmp_path / "b", AdapterWeights(layers, kernels={"a": (1, 3)}))
    write_peft(tmp_path / "c", AdapterWeights(layers))
    assert "convolution, kernel 3 x 1 vs. convolution, kernel 1 x 3" in run("diff", tmp_path / "a", tmp_path / "b", code=1)
    assert "convolution, kernel 3 x 1 vs. dense" in run("diff", tmp_path / "a", tmp_path / "c", code=1)


def test_truncate_and_combine_keep_convolutions(tmp_path, run):
    folder = FOLDER / "peft-linear-and-conv"
    run("truncate", folder, "--rank", "1", "-o", tmp_path / "small")
    run("combine", folder, folder, "--weights", "0.5", "0.5", "-o", tmp_path / "sum")
    for written in (tmp_path / "small", tmp_path / "sum"):
        assert load_peft(written).kernels == load_peft(folder).kernels
    np.testing.assert_allclose(load_peft(tmp_path / "sum").delta("conv"), load_peft(folder).delta("conv"), atol=1e-6)
