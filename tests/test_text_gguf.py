"""Tokenizers in GGUF files, and texts of token ids, whole and piece by piece."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_np import ArgumentError, FormatError, NotSupportedError
from lora_np.text import Tokenizer
from tests.io.gguf_files import WORDS, bpe_metadata, gguf_bytes

tokenizers = pytest.importorskip("tokenizers")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tiny.gguf"


def write(path, metadata):
    path.write_bytes(gguf_bytes({key: value for key, value in metadata.items() if value is not None}, {}))
    return path


def ids(text):
    """The ids of tokens, separated by spaces."""
    return [WORDS.index(word) for word in text.split()]


def test_texts_become_the_tokens_of_the_merges(path):
    tokenizer = Tokenizer.from_gguf(write(path, bpe_metadata()))
    assert tokenizer.encode("abc ab ba").tolist() == [ids("abc Ġab Ġ b a")]
    assert tokenizer.encode(["ab", "c"]).tolist() == [ids("ab"), ids("c")]
    assert tokenizer.end == 0


def test_special_tokens_in_a_text_are_ids_and_have_no_text(path):
    tokenizer = Tokenizer.from_gguf(write(path, bpe_metadata()))
    encoded = tokenizer.encode("<|start|>ab<|end|>")[0]
    assert encoded.tolist() == ids("<|start|> ab <|end|>")
    assert tokenizer.decode(encoded) == "ab"
    assert tokenizer.decode([*encoded, -1, -1]) == "ab"


def test_digits_are_apart_in_smollm_only(path):
    tokens, merges = [*WORDS, "12"], ["a b", "Ġ ab", "ab c", "1 2"]
    for pre, expected in (("smollm", ids("1 2")), ("gpt-2", [len(WORDS)])):
        assert Tokenizer.from_gguf(write(path, bpe_metadata(tokens, merges, pre))).encode("12")[0].tolist() == expected


def test_the_token_of_the_beginning(path):
    begin = {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": 1}
    tokenizer = Tokenizer.from_gguf(write(path, bpe_metadata() | begin))
    assert tokenizer.encode("ab")[0].tolist() == ids("<|start|> ab")
    tokenizer = Tokenizer.from_gguf(write(path, bpe_metadata() | begin | {"tokenizer.ggml.add_bos_token": False}))
    assert tokenizer.encode("ab")[0].tolist() == ids("ab")


def test_without_types_every_token_is_ordinary(path):
    tokenizer = Tokenizer.from_gguf(write(path, bpe_metadata() | {"tokenizer.ggml.token_type": None}))
    assert tokenizer.decode([0]) == "<|end|>"


def test_user_defined_tokens_are_text_that_is_never_divided(path):
    types = np.array([3, 4] + [1] * (len(WORDS) - 2), np.int32)
    tokenizer = Tokenizer.from_gguf(write(path, bpe_metadata() | {"tokenizer.ggml.token_type": types}))
    encoded = tokenizer.encode("ab<|start|>")[0]
    assert encoded.tolist() == ids("ab <|start|>")
    assert tokenizer.decode(encoded) == "ab<|start|>"


def test_texts_are_truncated_on_request(path):
    write(path, bpe_metadata())
    assert Tokenizer.from_gguf(path).encode("a" * 600).shape == (1, 600)
    assert Tokenizer.from_gguf(path, 3).encode("a" * 600).shape == (1, 3)
    with pytest.raises(ArgumentError, match="max_tokens"):
        Tokenizer.from_gguf(path, 0)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"tokenizer.ggml.model": "llama"}, NotSupportedError, "'tokenizer.ggml.model': must be 'gpt2', .* got 'llama'"),
        ({"tokenizer.ggml.model": None}, NotSupportedError, "must be 'gpt2', byte-level BPE, got None"),
        (
            {"tokenizer.ggml.pre": "qwen2"},
            NotSupportedError,
            "tokenizer.ggml.pre': must be .* gpt-2, smollm, got 'qwen2'",
        ),
        ({"tokenizer.ggml.pre": None}, NotSupportedError, "must be one of gpt-2, smollm, got None"),
        ({"tokenizer.ggml.tokens": None}, FormatError, "'tokenizer.ggml.tokens': must be a list of strings"),
        ({"tokenizer.ggml.tokens": np.ones(3, np.int32)}, FormatError, "must be a list of strings"),
        ({"tokenizer.ggml.tokens": ["a", "b", "a"]}, FormatError, "'tokenizer.ggml.tokens': a token occurs twice"),
        ({"tokenizer.ggml.merges": None}, FormatError, "'tokenizer.ggml.merges': must be a list of strings"),
        ({"tokenizer.ggml.merges": ["ab"]}, FormatError, "each must be two tokens, separated by a space"),
        ({"tokenizer.ggml.merges": ["a b c"]}, FormatError, "each must be two tokens, separated by a space"),
        ({"tokenizer.ggml.merges": ["a z"]}, FormatError, "'tokenizer.ggml.merges': .*z"),
        ({"tokenizer.ggml.token_type": np.ones(3, np.int32)}, FormatError, "must be 25 integers, one for each token"),
        ({"tokenizer.ggml.token_type": np.ones(25, np.float32)}, FormatError, "must be 25 integers"),
        ({"tokenizer.ggml.eos_token_id": 25}, FormatError, "'tokenizer.ggml.eos_token_id': .* 0 to 24, got 25"),
        ({"tokenizer.ggml.eos_token_id": True}, FormatError, "must be the id of a token, 0 to 24, got True"),
        ({"tokenizer.ggml.add_bos_token": True}, FormatError, "'tokenizer.ggml.bos_token_id': must be the id .* got None"),
    ],
    ids=str,
)
def test_a_tokenizer_that_cannot_be_built(path, changes, error, message):
    write(path, bpe_metadata() | changes)
    with pytest.raises(error, match=message) as raised:
        Tokenizer.from_gguf(path)
    assert str(path) in str(raised.value)


def test_a_file_without_an_end(path):
    assert Tokenizer.from_gguf(write(path, bpe_metadata() | {"tokenizer.ggml.eos_token_id": None})).end is None


# ---------------------------------------------------------------- ids to texts


@pytest.fixture(scope="module")
def by_bytes(tmp_path_factory):
    """A tokenizer whose tokens are the 256 bytes."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    metadata = bpe_metadata(["<|end|>", "<|start|>", *alphabet], [])
    return Tokenizer.from_gguf(write(tmp_path_factory.mktemp("bytes") / "tiny.gguf", metadata))


@given(text=st.text(max_size=12))
def test_pieces_join_to_the_text_and_end_with_whole_characters(by_bytes, text):
    encoded = by_bytes.encode(text)[0]
    assert len(encoded) == len(text.encode())
    assert by_bytes.decode(encoded) == text
    pieces = list(by_bytes.pieces(iter(encoded)))
    assert "".join(pieces) == text
    assert all(pieces)
    if "\ufffd" not in text:
        assert len(pieces) == len(text)


def test_a_character_that_never_ends_is_shown_at_the_end(by_bytes):
    encoded = by_bytes.encode("a🙂")[0][:-1]
    assert list(by_bytes.pieces(encoded)) == ["a", "\ufffd"]
    assert by_bytes.decode(encoded) == "a\ufffd"


def test_the_id_of_a_token(by_bytes):
    assert by_bytes.id_of("<|end|>") == 0
    assert by_bytes.id_of("<|im_end|>") is None


def test_ids_are_integers(by_bytes):
    with pytest.raises(ArgumentError, match="each of ids must be an integer"):
        by_bytes.decode([1.5])


# ---------------------------------------------------------------- the end of a text, of folders


@pytest.mark.parametrize(
    ("files", "end"),
    [
        ({}, None),
        ({"config.json": {"eos_token_id": 7}}, 7),
        ({"config.json": {"eos_token_id": 7}, "generation_config.json": {"eos_token_id": [5, 6]}}, 5),
        ({"config.json": {"eos_token_id": None}}, None),
        ({"config.json": {"eos_token_id": True}}, None),
        ({"config.json": []}, None),
    ],
    ids=str,
)
def test_the_end_of_a_text_is_in_the_configuration(tmp_path, files, end):
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert Tokenizer(tmp_path).end == end
