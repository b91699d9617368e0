"""The data set of the demo."""

from importlib.resources import files

import numpy as np

from .._typing import Array


def load_digits() -> tuple[Array, Array]:
    """Load the handwritten digits of Alpaydin and Kaynak (1998), of 8 x 8 pixels each.

    Returns
    -------
    images : array of float64, shape (1797, 8, 8)
        Brightness in [0, 1], in multiples of 1/16; 0 is the background.
    labels : array of int64, shape (1797,)
        The digit, 0 to 9.

    Notes
    -----
    The test set of "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, DOI 10.24432/C50P49, as
    distributed by scikit-learn; licensed under CC BY 4.0. For details, see ``lora_np/data/README.md``.

    Examples
    --------
    >>> from lora_np.data import load_digits
    >>> images, labels = load_digits()
    >>> images.shape, labels[:10].tolist()
    ((1797, 8, 8), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    """
    with (files(__name__) / "digits.npz").open("rb") as file, np.load(file, allow_pickle=False) as archive:
        return archive["images"].astype(np.float64) / 16, archive["labels"].astype(np.int64)
