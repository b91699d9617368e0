"""SmolLM2-135M-Instruct against transformers with the same weights: scripts/test_transformers."""

from pathlib import Path

import numpy as np
import pytest

from lora_np import generate, load_pretrained
from lora_np.text import Tokenizer

from .smollm2 import CHAT, FILE, PROMPTS, in_transformers

pytestmark = pytest.mark.oracle

HELD = [*PROMPTS, CHAT.format("Write a haiku about the sea."), "Die Hauptstadt von Österreich ist", "1 + 1 ="]


@pytest.fixture(scope="module")
def both(smollm2):
    pytest.importorskip("torch")
    path = Path(smollm2) / FILE
    return load_pretrained(path), in_transformers(path), Tokenizer.from_gguf(path)


def test_all_logits_of_held_prompts(both):
    import torch

    ours, theirs, tokenizer = both
    for prompt in HELD:
        ids = tokenizer.encode(prompt)
        with torch.no_grad():
            expected = theirs(torch.tensor(ids)).logits.numpy()
        found = ours.predict(ids)
        scale = abs(expected).max()
        difference = abs(found - expected).max()
        print(f"\nlargest difference of {expected.size:,} logits: {difference:.1e} at a scale of {scale:.0f}", end="")
        assert difference < 1e-4 * scale / 36
        np.testing.assert_array_equal(found.argmax(axis=-1), expected.argmax(axis=-1))


def test_twenty_four_greedy_tokens(both):
    import torch

    ours, theirs, tokenizer = both
    for prompt in HELD:
        ids = tokenizer.encode(prompt)
        with torch.no_grad():
            expected = theirs.generate(torch.tensor(ids), max_new_tokens=24, do_sample=False)[0, ids.shape[1] :]
        assert [int(token) for (token,) in generate(ours, ids, 24)] == expected.tolist()
