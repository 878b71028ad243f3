"""What an axis shows when a few values are huge: a network may grow to weights of 1e25 and still be finite.

One rule for every axis, colour scale and page: shown is what lies within three times the span of the middle 80 % on
either side of it; what lies beyond is drawn at the border, and the picture says how many there are.
"""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def limits(values: Array, typical: Array | None = None) -> tuple[float, float]:
    """Return the least and the largest of the values that do not lie far beyond the middle 80 % of the typical ones.

    Args:
        values: any shape; those that are not finite do not count.
        typical: what the middle is taken of, normally the values themselves.
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
    """Return where the border of an axis is: the limits and a margin, in which only what lies beyond them is drawn."""
    low, high = limits(values, typical)
    margin = (0.05 * high - 0.05 * low) or 0.05 * abs(low) or 1.0
    most = float(np.finfo(np.float64).max)
    return max(low - margin, -most), min(high + margin, most)


def beyond(values: Array, border: tuple[float, float]) -> npt.NDArray[np.bool_]:
    """Return which values lie beyond the border of their axis."""
    return (values < border[0]) | (values > border[1])
