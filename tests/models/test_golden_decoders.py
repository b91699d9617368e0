"""Tiny decoders saved by transformers, against what torch computes with them in float64.

`scripts/make_decoder_data.py` made the files.
"""

from pathlib import Path

import numpy as np
import pytest

from lora_np import AdamW, SoftmaxCrossEntropy, fit, generate, load_pretrained
from lora_np.io.safetensors import load_safetensors
from tests.io.networks import assert_close

DATA = Path(__file__).parent / "data" / "decoders"
NAMES = ["gpt2", "llama", "llama-tied"]
TOLERANCES = {np.float64: 1e-13, np.float32: 5e-6}


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def golden(name):
    return load_safetensors(DATA / name / "golden.safetensors")


def decoder(name, dtype=np.float64):
    return load_pretrained(DATA / name, dtype=dtype)


def last(logits, ids):
    """The logits at the last token of each sentence."""
    return logits[np.arange(len(ids)), (ids >= 0).sum(axis=1) - 1]


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_logits(name, golden, dtype):
    ids = golden["ids"]
    logits = decoder(name, dtype).predict(ids)
    assert logits.dtype == dtype
    assert_close(last(logits, ids), golden["last"], TOLERANCES[dtype])
    assert_close(logits[ids >= 0] @ golden["projection"], golden["projected"], TOLERANCES[dtype])
    assert not logits[ids < 0].any()


def test_gradients_of_all_arrays(name, golden):
    """Of the loss of the next token; that of a tied table is the sum over both of its uses."""
    model, ids = decoder(name), golden["ids"]
    targets = np.pad(ids[:, 1:], ((0, 0), (0, 1)), constant_values=-1)
    loss, dy = SoftmaxCrossEntropy().value_and_gradient(model.forward(ids), targets)
    assert loss == pytest.approx(float(golden["loss"]), rel=1e-12)
    model.backward(dy)
    assert {f"gradient.{path}" for path in model.gradients} == {key for key in golden if key.startswith("gradient.")}
    for path, gradient in model.gradients.items():
        wanted = golden[f"gradient.{path}"]
        assert_close(
            gradient if gradient.ndim == 1 else gradient @ golden[f"directions.{gradient.shape[1]}"], wanted, 1e-10
        )


def test_ten_losses(name, golden):
    model, ids = decoder(name), golden["ids"]
    model.unpack()
    targets = np.pad(ids[:, 1:], ((0, 0), (0, 1)), constant_values=-1)
    history = fit(model, (ids, targets), SoftmaxCrossEntropy(), AdamW(1e-2, weight_decay=1e-2), 10, len(ids), shuffle=False)
    np.testing.assert_allclose(history.step_losses, golden["losses"], rtol=1e-9)
    assert history.step_losses[-1] < history.step_losses[0]


def test_names_and_arrays_are_those_of_the_checkpoint(name):
    checkpoint = load_safetensors(DATA / name / "model.safetensors")
    arrays = decoder(name, np.float32).named_parameters(frozen=True)
    assert set(arrays) == set(checkpoint)
    for path, array in checkpoint.items():
        assert arrays[path].tobytes() == array.tobytes()


def test_greedy_tokens(name, golden):
    tokens = np.stack([*generate(decoder(name), golden["ids"], golden["greedy"].shape[1])], axis=1)
    np.testing.assert_array_equal(tokens, golden["greedy"])
    assert len(np.unique(tokens)) >= 5
