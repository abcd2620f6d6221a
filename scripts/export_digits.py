"""Write the digits that interfuse ships, the same bytes every time: ``python scripts/export_digits.py``.

Needs scikit-learn, which interfuse itself does not. The test rows are a stratified choice of 360 of the 1,797 with a
fixed seed. The split is stored, not recomputed, so it cannot change with NumPy's generators.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits  # type: ignore[import-untyped]

from interfuse.data.dataset import stratified_subset
from interfuse.randomness import numpy_generator

TEST_ROWS = 360
TARGET = Path(__file__).parents[1] / "src" / "interfuse" / "data" / "digits.npz"


def main() -> None:
    digits = load_digits()
    images, labels = digits.images.astype(np.uint8), digits.target.astype(np.uint8)
    test = np.isin(np.arange(len(labels)), stratified_subset(labels, TEST_ROWS, numpy_generator(0, "digits", "test")))
    # Stored without compression: the bytes then do not depend on the version of zlib.
    np.savez(TARGET, x_train=images[~test], y_train=labels[~test], x_test=images[test], y_test=labels[test])


if __name__ == "__main__":
    main()
