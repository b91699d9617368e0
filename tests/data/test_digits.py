import hashlib
from importlib.resources import files

import numpy as np

from lora_np.data import load_digits

FOLDER = files("lora_np.data")


def test_shapes_dtypes_and_values():
    images, labels = load_digits()
    assert (images.shape, images.dtype) == ((1797, 8, 8), np.float64)
    assert (labels.shape, labels.dtype) == ((1797,), np.int64)
    np.testing.assert_array_equal(np.unique(images * 16), np.arange(17))
    np.testing.assert_array_equal(np.bincount(labels), [178, 182, 177, 183, 181, 182, 181, 179, 174, 180])


def test_the_numbers_are_those_of_the_source():
    # Hashes of sklearn.datasets.load_digits() as bytes.
    images, labels = load_digits()
    assert _hash(images * 16) == "8f26b2bd9d135c256808f68f14fdabddde6d9c7f869ae419704b051f0f14b3b3"
    assert _hash(labels) == "8ba4f891220f5e4c9c819638d1602d74b83618f167043c6da52a2a247841ddf0"


def _hash(array):
    return hashlib.sha256(array.astype(np.uint8).tobytes()).hexdigest()


def test_the_file_holds_bytes_and_nothing_else():
    path = FOLDER / "digits.npz"
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        assert {name: (archive[name].dtype, archive[name].shape) for name in archive.files} == {
            "images": (np.uint8, (1797, 8, 8)),
            "labels": (np.uint8, (1797,)),
        }
    assert len(path.read_bytes()) < 50_000


def test_the_caller_owns_the_arrays():
    load_digits()[0][:] = 9
    assert load_digits()[0].max() == 1


def test_the_readme_names_source_and_licence():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    for words in ("Alpaydin", "Kaynak", "10.24432/C50P49", "CC BY 4.0", "scikit-learn", "scripts/make_digits.py"):
        assert words in text
