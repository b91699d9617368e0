"""`lora-np embed` and `lora-np classify`, on a tiny random encoder and a tokenizer of a few words."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lora_np import DyLoRAAdapter, SentenceEncoder, SequenceClassifier, apply_lora, load_layer, load_pretrained, save_layer
from lora_np.cli import main
from lora_np.io.peft import apply_peft, save_peft
from lora_np.io.safetensors import SafetensorsFile, save_safetensors
from lora_np.text import Tokenizer

tokenizers = pytest.importorskip("tokenizers")

TINY = Path(__file__).parents[1] / "models" / "data" / "bert"
TEXTS = ["a cat sat", "dog", "a dog sat a cat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An encoder with a tokenizer, a classifier with labels, and an adapter."""
    place = tmp_path_factory.mktemp("model")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(TINY / name, place / name)
    vocabulary = {word: i for i, word in enumerate(["[UNK]", "a", "cat", "dog", "sat"])}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(place / "tokenizer.json"))
    model = SequenceClassifier(load_pretrained(place), 2, rng=0)
    save_layer(model, place / "classifier.npz")
    (place / "labels.json").write_text('["pet", "food"]')
    adapted = apply_lora(load_pretrained(place), DyLoRAAdapter, max_rank=2, active_ranks=[1, 2], targets=["query"], rng=0)
    for adapter in adapted.walk().values():
        if isinstance(adapter, DyLoRAAdapter):
            adapter.lora_layer.matrix_b[...] = 1
    save_peft(place / "adapter", adapted)
    return place


def printed(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def refused(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_embeddings_in_the_order_of_the_texts(folder, capsys):
    lines = printed(capsys, "embed", folder, *TEXTS)
    assert [line["text"] for line in lines] == TEXTS
    expected = SentenceEncoder(load_pretrained(folder)).predict(Tokenizer(folder).encode(TEXTS))
    np.testing.assert_allclose([line["embedding"] for line in lines], expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm([line["embedding"] for line in lines], axis=1), 1, rtol=1e-5)


def test_texts_from_standard_input(folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", iter(f"{text}\n" for text in TEXTS))
    assert printed(capsys, "embed", folder) == printed(capsys, "embed", folder, *TEXTS)


@pytest.mark.parametrize("place", ["", "classifier.npz"])
def test_classes_with_their_probabilities(folder, capsys, place):
    lines = printed(capsys, "classify", folder / place, *TEXTS)
    assert [line["text"] for line in lines] == TEXTS
    for line in lines:
        assert list(line["probabilities"]) == ["pet", "food"]
        assert sum(line["probabilities"].values()) == pytest.approx(1)
        assert line["label"] == max(line["probabilities"], key=line["probabilities"].get)


def test_an_adapter_at_a_rank(folder, capsys):
    plain = printed(capsys, "classify", folder, *TEXTS)
    adapter = ("--adapter", folder / "adapter")
    ranks = [printed(capsys, "classify", folder, *adapter, "--rank", rank, *TEXTS) for rank in (1, 2)]
    assert plain != ranks[0] != ranks[1]
    assert printed(capsys, "classify", folder, *TEXTS, *adapter) == ranks[1]


def test_an_adapter_of_the_classifier(folder, capsys, tmp_path):
    model = load_layer(folder / "classifier.npz")
    encoder = apply_peft(model.children()["bert"], folder / "adapter")
    save_peft(tmp_path / "adapter", model.with_children({"bert": encoder}))
    expected = printed(capsys, "classify", folder, *TEXTS, "--adapter", folder / "adapter")
    assert printed(capsys, "classify", folder, *TEXTS, "--adapter", tmp_path / "adapter") == expected


def test_long_texts_are_truncated(folder, capsys):
    long, short = printed(capsys, "embed", folder, "a cat " * 50, "a cat " * 6)
    assert long["embedding"] == short["embedding"]  # the model has 12 positions


def test_standard_input_in_another_encoding(folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a cat\n\xff\n"), encoding="utf-8"))
    assert "standard input must be text in utf-8: invalid start byte" in refused(capsys, "embed", folder)


def test_without_names_classes_are_numbers(folder, capsys, tmp_path):
    shutil.copy(folder / "classifier.npz", tmp_path / "mine.npz")
    (line,) = printed(capsys, "classify", tmp_path / "mine.npz", "--tokenizer", folder / "tokenizer.json", "a cat")
    assert list(line["probabilities"]) == ["0", "1"]


@pytest.mark.parametrize("arguments", [["embed", "m", "a", "--what"], ["inspect", "m", "--json", "n"]], ids=str)
def test_arguments_that_no_command_has(capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "unrecognized arguments" in capsys.readouterr().err


def test_what_cannot_be_used_is_named_in_one_line(folder, capsys, tmp_path):
    assert "nowhere: must be a folder with config.json" in refused(capsys, "embed", tmp_path / "nowhere", "a")
    assert "tokenizer.json: no such file" in refused(capsys, "embed", TINY, "a")
    assert "classifier.npz: no such file" in refused(capsys, "classify", TINY, "a")
    save_layer(SentenceEncoder(load_pretrained(TINY)), tmp_path / "other.npz")
    assert "other.npz: must be a SequenceClassifier, got a SentenceEncoder" in refused(
        capsys, "classify", tmp_path / "other.npz", "a"
    )
    assert "no layer in" in refused(capsys, "classify", folder, "a", "--rank", 2)
    assert "nothing: contains no adapter_config.json" in refused(
        capsys, "classify", folder, "a", "--adapter", tmp_path / "nothing"
    )


@pytest.mark.parametrize("labels", ["[", '["one"]', '["one", "one"]', '{"a": 1}', "[1, 2]"])
def test_names_that_do_not_fit(folder, capsys, tmp_path, labels):
    for name in ("classifier.npz", "tokenizer.json"):
        shutil.copy(folder / name, tmp_path / name)
    (tmp_path / "labels.json").write_text(labels)
    assert "labels.json: " in refused(capsys, "classify", tmp_path, "a")


def test_a_tensor_that_the_model_lacks_is_dropped_on_request(folder, tmp_path, capsys):
    place = tmp_path / "adapter"
    shutil.copytree(folder / "adapter", place)
    file = place / "adapter_model.safetensors"
    name = "base_model.model.pooler.dense.bias"
    with SafetensorsFile(file) as stored:
        save_safetensors(file, dict(stored) | {name: np.ones(3)}, stored.metadata)
    arguments = ("classify", folder, "--adapter", place, "a cat")
    assert "--drop 'pooler.dense.bias' would leave it out" in refused(capsys, *arguments)
    assert main([*map(str, arguments), "--drop", "pooler.*"]) == 0
    assert capsys.readouterr().err == f"lora-np: {place}: dropped {name}\n"
