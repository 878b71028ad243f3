"""The results of `representation.represent` on stderr, a row as soon as its method is scored, with the time it took."""

import shutil
from collections.abc import Iterable, Sequence

from representation.evaluation.baselines import Baseline
from representation.evaluation.results import PERCENT, Score, fixed
from representation.evaluation.scoring import Method, Scorer, Seconds
from representation.evaluation.stored import BaselineScores
from zootools.text import printable, say

NAME, NUMBER = 24, 7
"""Width of the columns of methods and of seconds."""
UNKNOWN_WIDTH = 160
"""Width of the rows where stderr is not a terminal."""


class Rows:
    """Prints the test scores of each method on the zoo itself by the paper's probe, in percent.

    Only the properties are shown that fit into a line of the terminal; the table at the end has all of them.
    """

    def __init__(self, zoo: str, targets: Iterable[str]) -> None:
        self.zoo, self.columns, self.begun = zoo, list[str](), False
        left = shutil.get_terminal_size((UNKNOWN_WIDTH, 24)).columns - NAME - 3 * NUMBER
        for target in ("reconstruction", *targets):
            left -= self._width(target)
            if left < len(" ..."):
                break
            self.columns.append(target)
        else:
            left = 0
        self.cut = " ..." if left else ""

    @staticmethod
    def _width(target: str) -> int:
        return max(NUMBER, len(printable(target)) + 2)

    def show(self, method: str, seed: int, seconds: Seconds, scores: Sequence[Score], stored: bool = False) -> None:
        """Print the row of a method with these scores; before the first one, the names of the columns.

        Instead of the seconds of scores that were ``stored``, the row has that word.
        """
        if not self.begun:
            self.begun = True
            say("processor seconds of fit, embedding and probe, then test scores of the paper's probe in %", err=True)
            names = "".join(printable(target).rjust(self._width(target)) for target in self.columns)
            say("".join([" " * NAME, *(what.rjust(NUMBER) for what in Seconds._fields), names, self.cut]), err=True)
        shown = {
            score.target: score.value
            for score in scores
            if (score.evaluated_on, score.split) == (self.zoo, "test")
            and score.metric in PERCENT
            and score.probe in (None, "paper")
        }
        cells = ["stored".rjust(3 * NUMBER)] if stored else [f"{value:{NUMBER}.1f}" for value in seconds]
        for target in self.columns:
            value = shown.get(target)
            cells.append(("" if value is None else fixed(100 * value)).rjust(self._width(target)))
        say((f"{method}, seed {seed}".ljust(NAME) + "".join(cells)).rstrip(), err=True)


class ShownScores:
    """Scores methods with a `Scorer`, baselines from the cache if they are there, and shows a row for each.

    Args:
        scorer: gets the scores.
        quiet: show nothing.
    """

    def __init__(self, scorer: Scorer, quiet: bool) -> None:
        self.scorer, self._cached = scorer, BaselineScores(scorer)
        self._rows = None if quiet else Rows(scorer.home.name, scorer.targets)

    @property
    def notes(self) -> list[str]:
        """Remarks on files of the cache that could not be used or written."""
        return self._cached.notes

    def method(self, method: Method) -> None:
        """Score a method."""
        before = len(self.scorer.scores)
        seconds = self.scorer.score(method)
        if self._rows is not None:
            self._rows.show(method.name, method.seed, seconds, self.scorer.scores[before:])

    def baseline(self, baseline: Baseline, seed: int) -> None:
        """Score a baseline for a seed; one that draws nothing at random is the same for all, and scored for seed 0."""
        if seed > 0 and not baseline.seeded:
            return
        scored = self._cached.score(baseline)
        if scored.seconds is not None and self._rows is not None:
            self._rows.show(baseline.name, seed, scored.seconds, scored.scores, scored.stored)
