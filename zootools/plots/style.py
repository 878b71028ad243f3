"""The style of all pictures: fonts, colours that colour-blind readers can distinguish, names of properties."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from zootools.extras import optional

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
"""The palette of Okabe and Ito, without yellow, which is hard to see on white."""
MARKERS = ("o", "^", "s")
"""With more than seven labels, markers change too."""
GREY, DIVERGED = "#999999", "#D55E00"
OTHERS = (GREY, "x")
"""Colour and marker of labels for which no colour is left."""
NUMBERS = "viridis"
"""The colour map of numbers."""
MAX_LABEL = 24
"""Maximal number of characters of a label."""

NAMES = {"W": "the weights W", "s(W)": "the weight statistics s(W)", "z": "the learned representation z"}
"""The names of representations in titles."""

RATES = frozenset({"lr", "learning_rate", "weight_decay", "l2", "l2reg"})
"""Columns of which a factor, not a difference, is one step."""

_TITLES = {
    "init": "initialisation",
    "lr": "learning rate",
    "test_accuracy": "test accuracy",
    "train_accuracy": "training accuracy",
    "train_loss": "training loss",
    "generalization_gap": "generalisation gap",
}

_SETTINGS: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "figure.constrained_layout.h_pad": 0.12,  # a legend below axes must not look like a title of the next ones
    "text.parse_math": False,  # a label with a dollar sign is not a formula
    "svg.fonttype": "none",
    "svg.hashsalt": "zootools",
    "savefig.dpi": 150,
}


@contextmanager
def styled() -> Iterator[None]:
    """Draw with our settings, independent of the user's matplotlibrc."""
    mpl = optional("matplotlib", "a picture of a zoo", "plots")
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)
        yield


def title_of(name: str) -> str:
    """Return the name of a property in titles and labels."""
    return readable(_TITLES.get(name, name.replace("_", " ")))


def is_logarithmic(name: str, low: float, high: float) -> bool:
    """Return whether the colours of a column are logarithmic: positive rates, and what spans two powers of ten."""
    return low > 0 and high > (low if name in RATES else 100 * low)


def readable(text: str) -> str:
    """Return a label for a legend: shortened, with unprintable characters replaced."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    text = text or "(empty)"
    return text if len(text) <= MAX_LABEL else text[: MAX_LABEL - 1] + "…"


def looks(labels: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return colour and marker by label, in alphabetical order; the rarest labels beyond 20 get `OTHERS`."""
    counts = Counter(labels)
    room = len(PALETTE) * len(MARKERS) - 1
    kept = sorted(name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:room])
    found = {name: (PALETTE[i % len(PALETTE)], MARKERS[i // len(PALETTE)]) for i, name in enumerate(kept)}
    return found | {name: OTHERS for name in counts if name not in found}
