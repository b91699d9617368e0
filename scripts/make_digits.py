"""Make lora_np/data/digits.npz from scikit-learn's copy of the UCI handwritten digits.

The file is part of the repository; this script documents its origin. It requires scikit-learn, which lora_np does not
depend on. Two runs produce identical files.

    python -m pip install scikit-learn
    python scripts/make_digits.py
"""

import sys
from pathlib import Path

import numpy as np

TARGET = Path(__file__).parents[1] / "lora_np" / "data" / "digits.npz"


def main() -> None:
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        sys.exit("This script requires scikit-learn: python -m pip install scikit-learn")
    digits = load_digits()
    images, labels = digits.images.astype(np.uint8), digits.target.astype(np.uint8)
    if not (np.array_equal(images, digits.images) and np.array_equal(labels, digits.target)):
        sys.exit("The images or labels are not integers that fit into a byte")
    np.savez_compressed(TARGET, images=images, labels=labels)
    print(f"{TARGET.name}: {len(images)} images, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
