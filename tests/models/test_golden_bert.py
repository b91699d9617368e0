"""A tiny BERT saved by transformers, against what torch and PEFT compute with it in float64.

`scripts/make_bert_data.py` made the files.
"""

from pathlib import Path

import numpy as np
import pytest

from lora_np import AdamW, SoftmaxCrossEntropy, fit
from lora_np.io.peft import apply_peft
from lora_np.io.pretrained import load_pretrained
from lora_np.io.safetensors import load_safetensors
from lora_np.models.heads import SentenceEncoder, SequenceClassifier
from tests.io.networks import assert_close

DATA = Path(__file__).parent / "data"
GOLDEN = load_safetensors(DATA / "golden.safetensors")
CHECKPOINT = load_safetensors(DATA / "bert" / "model.safetensors")
IDS = GOLDEN["ids"]
TOKENS = IDS >= 0
ADAPTED = ["attention.self.query", "attention.self.value"]


def encoder(dtype=np.float64):
    return load_pretrained(DATA / "bert", dtype=dtype)


def adapted(dtype=np.float64):
    return apply_peft(encoder(dtype), DATA / "adapter")


def gradients_of(model):
    """The gradients of a model for the golden gradient of its hidden states; those at padding have no effect."""
    model.forward(IDS)
    dy = np.full((*IDS.shape, model.output_size), 1e3)
    dy[TOKENS] = GOLDEN["output_gradient"]
    model.backward(dy)
    return model.gradients


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-13), (np.float32, 3e-6)])
class TestOutputs:
    def test_hidden_states(self, dtype, tolerance):
        hidden = encoder(dtype).predict(IDS)
        assert hidden.dtype == dtype
        assert_close(hidden[TOKENS], GOLDEN["hidden"], tolerance)
        assert not hidden[~TOKENS].any()

    def test_hidden_states_of_one_sentence(self, dtype, tolerance):
        rows = np.split(GOLDEN["hidden"], TOKENS.sum(1).cumsum()[:-1])
        for ids, tokens, wanted in zip(IDS, TOKENS, rows, strict=True):
            assert_close(encoder(dtype).predict(ids[np.newaxis, tokens])[0], wanted, tolerance)

    def test_sentence_embeddings(self, dtype, tolerance):
        assert_close(SentenceEncoder(encoder(dtype)).predict(IDS), GOLDEN["embedding"], tolerance)

    def test_hidden_states_with_an_adapter_of_peft(self, dtype, tolerance):
        assert_close(adapted(dtype).predict(IDS)[TOKENS], GOLDEN["adapted.hidden"], max(tolerance, 1e-12))


def test_gradients_of_all_arrays():
    ours = gradients_of(encoder())
    assert {f"gradient.{name}" for name in ours} == {name for name in GOLDEN if name.startswith("gradient.")}
    for name, gradient in ours.items():
        wanted = GOLDEN[f"gradient.{name}"]
        if gradient.ndim == 2:
            gradient = gradient @ GOLDEN[f"directions.{gradient.shape[1]}"]
        if name.endswith("key.bias"):  # zero in exact arithmetic: the softmax ignores what all keys share
            np.testing.assert_allclose(gradient, wanted, rtol=0, atol=1e-13)
        else:
            assert_close(gradient, wanted, 1e-10)


def test_gradients_of_an_adapter_of_peft():
    ours = gradients_of(adapted())
    theirs = {name for name in GOLDEN if name.startswith("adapted.gradient.")}
    names = {"lora.matrix_a": "lora_A.weight", "lora.matrix_b": "lora_B.weight"}
    assert len(ours) == len(theirs) == 8
    for path in (f"encoder.layer.{i}.{name}" for i in range(2) for name in ADAPTED):
        for name, their_name in names.items():
            assert_close(ours[f"{path}.{name}"].T, GOLDEN[f"adapted.gradient.{path}.{their_name}"], 1e-10)


def test_an_adapter_of_peft_as_the_task_of_some_sentences():
    model = apply_peft(encoder(), {"task": DATA / "adapter"})
    tasks = ["task", None, "task", None]
    wanted = np.where(
        np.repeat([True, False, True, False], TOKENS.sum(1))[:, None], GOLDEN["adapted.hidden"], GOLDEN["hidden"]
    )
    assert_close(model.predict(IDS, tasks=tasks)[TOKENS], wanted, 1e-12)


def test_ten_losses_of_a_classifier():
    model = SequenceClassifier(encoder(), 3)
    for name in ("classifier.weight", "classifier.bias"):
        assert model.set_parameter(name, GOLDEN[name])
    history = fit(
        model, (IDS, GOLDEN["labels"]), SoftmaxCrossEntropy(), AdamW(1e-2, weight_decay=1e-2), 10, len(IDS), shuffle=False
    )
    assert len(history.step_losses) == 10
    np.testing.assert_allclose(history.step_losses, GOLDEN["losses"], rtol=1e-10)


# ---------------------------------------------------------------- names


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_named_arrays_are_those_of_the_checkpoint(dtype):
    arrays = encoder(dtype).named_parameters(frozen=True)
    assert set(arrays) == set(CHECKPOINT)
    for name, array in CHECKPOINT.items():
        assert arrays[name].dtype == dtype
        assert np.array_equal(arrays[name], array)


def test_paths_are_those_of_the_checkpoint():
    paths = {path for path, layer in encoder().walk().items() if not layer.children()}
    assert paths == {name.rpartition(".")[0] for name in CHECKPOINT}
