"""Texts to token ids, and batches of similar length, with a tokenizer of a few words."""

import builtins

import numpy as np
import pytest

from lora_np import ArgumentError, FormatError, NotSupportedError
from lora_np.text import Tokenizer, by_length

tokenizers = pytest.importorskip("tokenizers")


@pytest.fixture
def folder(tmp_path):
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "a": 1, "cat": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_ids_are_padded_at_the_end(folder):
    for path in (folder, folder / "tokenizer.json", str(folder)):
        np.testing.assert_array_equal(
            Tokenizer(path).encode(["a cat", "cat", "a big cat"]), [[1, 2, -1], [2, -1, -1], [1, 0, 2]]
        )
    assert Tokenizer(folder).encode("a cat").tolist() == [[1, 2]]
    assert Tokenizer(folder, 2).encode(["a cat a"]).tolist() == [[1, 2]]
    assert Tokenizer(folder).encode([]).shape == (0, 0)


def test_the_padding_and_the_truncation_of_the_file_are_not_used(folder):
    file = str(folder / "tokenizer.json")
    words = tokenizers.Tokenizer.from_file(file)
    words.enable_padding(length=8)
    words.enable_truncation(2)
    words.save(file)
    assert Tokenizer(folder, None).encode(["a cat a", "cat"]).tolist() == [[1, 2, 1], [2, -1, -1]]


def test_a_text_has_512_tokens_at_most_by_default(folder):
    assert Tokenizer(folder).encode(["a " * 600]).shape == (1, 512)
    assert Tokenizer(folder, None).encode(["a " * 600]).shape == (1, 600)


@pytest.mark.parametrize("text", [7, None, b"a", ["a"]])
def test_a_text_is_a_string(folder, text):
    with pytest.raises(ArgumentError, match="texts must be strings"):
        Tokenizer(folder).encode(["a", text])


def test_a_lone_surrogate_is_refused(folder):
    with pytest.raises(ArgumentError, match="texts must be valid Unicode"):
        Tokenizer(folder).encode(["a \ud800"])


def test_a_bad_file_is_refused(folder):
    with pytest.raises(FormatError, match="no such file"):
        Tokenizer(folder / "other.json")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(FormatError, match="not a tokenizer"):
        Tokenizer(folder)


def test_the_number_of_tokens_is_positive(folder):
    with pytest.raises(ArgumentError, match="max_tokens"):
        Tokenizer(folder, 0)


def test_the_extra_is_named_when_the_package_is_missing(folder, monkeypatch):
    real = builtins.__import__

    def without_tokenizers(name, *more):
        if name == "tokenizers":
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", without_tokenizers)
    with pytest.raises(NotSupportedError, match=r"lora_np\[text\]"):
        Tokenizer(folder)
    with pytest.raises(NotSupportedError, match=r"lora_np\[text\]"):
        Tokenizer.from_gguf(folder / "missing.gguf")


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
def test_batches_of_similar_length_cover_every_sentence_once(batch_size):
    ids = np.array([[1, 2, 0, 0], [0, -1, -1, -1], [1, 0, -1, -1], [2, -1, -1, -1], [0, 0, 0, -1]])
    batches = list(by_length(ids, batch_size))
    assert sorted(row for rows, _ in batches for row in rows) == [0, 1, 2, 3, 4]
    for rows, batch in batches:
        width = batch.shape[1]
        np.testing.assert_array_equal(ids[rows, :width], batch)
        assert (ids[rows, width:] == -1).all()
        assert (batch[:, -1] >= 0).any()
    widths = [batch.shape[1] for _, batch in batches]
    assert widths == sorted(widths)


def test_a_batch_has_64_sentences_by_default():
    assert [len(rows) for rows, _ in by_length(np.zeros((65, 2), int))] == [64, 1]
