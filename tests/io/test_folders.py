"""The files that a merged folder has besides its weights: copied byte by byte, but for what a merge changes."""

import json

import pytest

from lora_np.io.folders import CopiedFiles, copy_model_files

ENTRIES = {"name": "Modèle", "tie_word_embeddings": True, "vocab_size": 5}
TEXT = json.dumps(ENTRIES, separators=(",", ":"))


@pytest.fixture
def copied(tmp_path):
    """Copy a folder with the given config.json; the text of the copy, and what was copied."""

    def copied(text, **options):
        for name in ("base", "out"):
            (tmp_path / name).mkdir()
        (tmp_path / "base" / "model.safetensors").touch()
        if text is not None:
            (tmp_path / "base" / "config.json").write_text(text, encoding="utf-8")
        found = copy_model_files(tmp_path / "base", tmp_path / "out", **options)
        file = tmp_path / "out" / "config.json"
        return file.read_text(encoding="utf-8") if file.exists() else None, found

    return copied


@pytest.mark.parametrize("options", [{}, {"vocab_size": 5}, {"untied": False}])
def test_a_configuration_that_stays_keeps_its_text(copied, options):
    assert copied(TEXT, **options) == (TEXT, CopiedFiles(("config.json",), ("model.safetensors",)))


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({"untied": True}, {"tie_word_embeddings": False}),
        ({"vocab_size": 7}, {"vocab_size": 7}),
        ({"untied": True, "vocab_size": 7}, {"tie_word_embeddings": False, "vocab_size": 7}),
    ],
)
def test_what_a_merge_changes(copied, options, changes):
    text, _ = copied(TEXT, **options)
    assert text == json.dumps(ENTRIES | changes, indent=2, ensure_ascii=False) + "\n"


def test_a_vocabulary_is_not_added(copied):
    assert copied("{}", vocab_size=7)[0] == "{}"


def test_a_folder_may_have_no_configuration(copied):
    assert copied(None, untied=True, vocab_size=7) == (None, CopiedFiles((), ("model.safetensors",)))
