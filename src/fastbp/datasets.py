"""Real data inside the package: nothing is downloaded."""

from importlib.resources import files

import numpy as np


def load_digits(dtype="float32"):
    """Handwritten digits: 1,797 real images of 8 × 8 pixels by 13 writers, about 180 of each digit.

    Args:
        dtype: type of the pixels, "float32" or "float64".

    Returns:
        ``(x, y)``: pixels ``x`` (1797, 64) row by row, 0 (paper) to 1 (ink) in steps of 1/16;
        labels ``y`` (1797,), int64, 0 to 9. Fresh arrays, C order.

    Raises:
        TypeError: ``dtype`` is neither "float32" nor "float64".

    Source: E. Alpaydin, C. Kaynak, *Optical Recognition of Handwritten Digits*, UCI Machine Learning Repository, 1998,
    https://doi.org/10.24432/C50P49 (test part, CC BY 4.0).

    >>> x, y = load_digits()
    >>> x.shape, x.dtype.name, y.shape, y.dtype.name
    ((1797, 64), 'float32', (1797,), 'int64')
    """
    if dtype not in ("float32", "float64", np.float32, np.float64):
        raise TypeError(f"dtype must be 'float32' or 'float64', got {dtype!r}")
    with (files("fastbp") / "data" / "digits.npz").open("rb") as file, np.load(file) as digits:
        return digits["x"].astype(dtype) / 16, digits["y"].astype(np.int64)
