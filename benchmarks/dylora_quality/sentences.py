"""The sentence encoder: adapters in its upper blocks, and a head that is pretrained and trains with them."""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from lora_np import Adam, FullyConnectedLayer, SoftmaxCrossEntropy, fit
from lora_np.demo.text_encoder import UpperBlocks, cut
from lora_np.demo.text_training import adapted
from lora_np.models.heads import SentenceEncoder
from lora_np.text import predict_by_length
from lora_np.training import LinearDecay

from .sets import Problem, Rows, encoder_of, questions

BLOCKS, TRAINED, CHOOSING, TESTED = 2, 600, 300, 400


@lru_cache
def _encoded(folder: Path) -> tuple[UpperBlocks, np.ndarray, np.ndarray, np.ndarray]:
    """The upper blocks, the questions of TREC for them, their means on the unchanged encoder, and their coarse classes."""
    encoder, tokenizer = encoder_of(folder)
    texts, classes = questions(folder)
    upper, ids = cut(encoder, tokenizer.encode(texts), BLOCKS)
    _, labels = np.unique([name.split(":")[0] for name in classes], return_inverse=True)
    return upper, ids, predict_by_length(SentenceEncoder(upper, normalize=False), ids), labels


def sentences(seed: int, folder: Path) -> Problem:
    """The six coarse classes of TREC's questions, with all-MiniLM-L6-v2; its head is trained on 600 questions first."""
    upper, ids, means, labels = _encoded(folder)
    rng = np.random.default_rng((seed, 0))
    order = rng.permutation(len(ids))[: TESTED + CHOOSING + TRAINED]
    test, choosing, train = np.split(order, [TESTED, TESTED + CHOOSING])
    head = FullyConnectedLayer(upper.output_size, 6, bias=False, dtype=np.float32, rng=rng)
    loss = SoftmaxCrossEntropy()
    fit(head, (means[train], labels[train]), loss, Adam(0.003), 30, 32, rng=rng, schedule=LinearDecay())
    rows = (Rows(ids[part], labels[part]) for part in (train, choosing, test))
    return Problem(seed, *rows, loss, 12, partial(adapted, upper, head), predict_by_length)
