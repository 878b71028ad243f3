"""The range of an axis when a few values are huge: a network may have weights of 1e25 and still be finite.

One rule for every axis, colour scale and page: the range covers the middle 80 % of the values and three times their
span on either side. Values beyond it are drawn at the border, and the picture states their number.
"""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def limits(values: Array, typical: Array | None = None) -> tuple[float, float]:
    """Return the smallest and the largest value that are not far outside the middle 80 % of the typical values.

    Args:
        values: any shape; infinite and NaN values are ignored.
        typical: the values whose middle 80 % is used; by default ``values``.
    """
    values = values[np.isfinite(values)]
    typical = values if typical is None else typical[np.isfinite(typical)]
    if not len(values) or not len(typical):
        return 0.0, 1.0
    with np.errstate(over="ignore", invalid="ignore"):  # values at both ends of float64: nothing is beyond
        low, high = np.quantile(typical, [0.1, 0.9])
        room = 3 * (high - low)
    if low < high:
        inside = values[(values >= low - room) & (values <= high + room)]
        values = inside if len(inside) else np.array([low, high])
    return float(values.min()), float(values.max())


def frame(values: Array, typical: Array | None = None) -> tuple[float, float]:
    """Return the border of an axis: the limits and a margin, at whose end values beyond the limits are drawn."""
    low, high = limits(values, typical)
    margin = (0.05 * high - 0.05 * low) or 0.05 * abs(low) or 1.0
    most = float(np.finfo(np.float64).max)
    return max(low - margin, -most), min(high + margin, most)


def beyond(values: Array, border: tuple[float, float]) -> npt.NDArray[np.bool_]:
    """Return a mask of the values beyond the border of their axis."""
    return (values < border[0]) | (values > border[1])
