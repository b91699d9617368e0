"""all-MiniLM-L6-v2, loaded and run with NumPy alone, against numbers that transformers computed (`make_bert_data.py`).

`scripts/test_real` downloads the weights and runs these tests.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from lora_np.io.pretrained import load_pretrained
from lora_np.models.heads import SentenceEncoder

pytestmark = pytest.mark.real

SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
CASES = json.loads((Path(__file__).parent / "data" / "minilm.json").read_text(encoding="utf-8"))
TOLERANCES = {np.float64: 1e-13, np.float32: 3e-6}


@pytest.fixture(scope="module", params=TOLERANCES, ids=["float64", "float32"])
def encoder(request, minilm):
    return load_pretrained(minilm, dtype=request.param)


def batch():
    """The ids of all sentences, padded."""
    ids = np.full((len(CASES), max(len(case["ids"]) for case in CASES)), -1)
    for row, case in zip(ids, CASES, strict=True):
        row[: len(case["ids"])] = case["ids"]
    return ids


def test_the_file_is_the_one_that_the_numbers_were_computed_with(minilm):
    assert hashlib.sha256((Path(minilm) / "model.safetensors").read_bytes()).hexdigest() == SHA256


def test_hidden_states_of_four_sentences(encoder):
    hidden = encoder.predict(batch())
    assert hidden.dtype == encoder.dtype
    for row, case in zip(hidden, CASES, strict=True):
        assert len(case["hidden"]) == 8
        last = row[len(case["ids"]) - 1]
        np.testing.assert_allclose(last[::48], case["hidden"], rtol=0, atol=TOLERANCES[encoder.dtype.type])


def test_a_sentence_alone_and_in_a_batch(encoder):
    together = SentenceEncoder(encoder).predict(batch())
    alone = [SentenceEncoder(encoder).predict([case["ids"]])[0] for case in CASES]
    np.testing.assert_allclose(together, alone, rtol=0, atol=TOLERANCES[encoder.dtype.type])
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=0, atol=TOLERANCES[encoder.dtype.type])


def test_float32_weights_are_mapped_and_not_copied(minilm):
    arrays = load_pretrained(minilm).named_parameters(frozen=True)
    assert len(arrays) == 101
    assert not any(array.flags.writeable or array.flags.owndata for array in arrays.values())
