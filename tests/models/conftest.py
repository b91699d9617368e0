"""The pretrained models all-MiniLM-L6-v2 and SmolLM2-135M-Instruct, for the tests that need them."""

import os

import pytest


@pytest.fixture(scope="session")
def minilm():
    """The folder of its checkpoint."""
    folder = os.environ.get("MINILM")
    if folder is None:
        pytest.skip("needs all-MiniLM-L6-v2: scripts/test_real and scripts/test_transformers download it and set MINILM")
    return folder


@pytest.fixture(scope="session")
def smollm2():
    """The folder of its GGUF file and of the wheel that contains it."""
    folder = os.environ.get("SMOLLM2")
    if folder is None:
        pytest.skip("needs SmolLM2-135M-Instruct: scripts/test_real and scripts/test_transformers set SMOLLM2")
    return folder
