"""Exact confidence bounds of a proportion (Clopper & Pearson, Biometrika 26, 1934).

SciPy takes as long to load as NumPy, at every start of every process. Here, as elsewhere, it is
imported where it is asked for: the first time that something has been learned.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def clopper_pearson(count: Ints, total: Ints, miss: Floats | float) -> tuple[Floats, Floats]:
    """Return lower and upper bounds, each of which the true rate passes with probability ≤ `miss`.

    `count` of `total` events; arrays of one shape, 0 ≤ count ≤ total. `miss` is one number, or an
    array of a shape that goes with theirs.
    """
    from scipy.special import betainccinv, betaincinv

    k, n = count.astype(np.float64), total.astype(np.float64)
    low = np.where(count > 0, betaincinv(np.maximum(k, 1), n - k + 1, miss), 0.0)
    # The complement, not the inverse at 1 - miss: that loses the digits of a small `miss`.
    high = np.where(count < total, betainccinv(k + 1, np.maximum(n - k, 1), miss), 1.0)
    return low, high
