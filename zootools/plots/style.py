"""How every picture looks: fonts, colours that colour-blind readers can tell apart, names with units."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from zootools.extras import optional

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
"""Okabe and Ito's colours, without the yellow that white paper swallows."""
MARKERS = ("o", "^", "s")
"""Beyond seven labels the shape changes too."""
GREY, DIVERGED = "#999999", "#D55E00"
OTHERS = (GREY, "x")
"""How labels look for which there is no colour left."""
NUMBERS = "viridis"
"""The colour map of numbers."""
MAX_LABEL = 24

NAMES = {"W": "the weights W", "s(W)": "the weight statistics s(W)", "z": "the learned representation z"}
"""What the representations are called in titles."""

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
    "figure.constrained_layout.h_pad": 0.12,  # a legend below one pair of axes must not look like a title of the next
    "text.parse_math": False,  # a stranger's label with a dollar sign is no formula
    "svg.fonttype": "none",
    "svg.hashsalt": "zootools",
    "savefig.dpi": 150,
}


@contextmanager
def styled() -> Iterator[None]:
    """Draw with our settings, whatever the user's matplotlibrc says."""
    mpl = optional("matplotlib", "a picture of a zoo", "plots")
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)
        yield


def title_of(name: str) -> str:
    """Return what people call a property."""
    return readable(_TITLES.get(name, name.replace("_", " ")))


def readable(text: str) -> str:
    """Return a label that fits into a legend: short, and without what cannot be printed."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    text = text or "(empty)"
    return text if len(text) <= MAX_LABEL else text[: MAX_LABEL - 1] + "…"


def looks(labels: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return colour and marker by label, in alphabetical order; the rarest beyond 20 share the look of ``other``."""
    counts = Counter(labels)
    room = len(PALETTE) * len(MARKERS) - 1
    kept = sorted(name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:room])
    found = {name: (PALETTE[i % len(PALETTE)], MARKERS[i // len(PALETTE)]) for i, name in enumerate(kept)}
    return found | {name: OTHERS for name in counts if name not in found}
