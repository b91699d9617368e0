"""The pretrained encoder all-MiniLM-L6-v2, for the tests that need it."""

import os

import pytest


@pytest.fixture(scope="session")
def minilm():
    """The folder of its checkpoint."""
    folder = os.environ.get("MINILM")
    if folder is None:
        pytest.skip("needs all-MiniLM-L6-v2: scripts/test_real and scripts/test_transformers download it and set MINILM")
    return folder
