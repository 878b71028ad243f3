"""The paper's tables and figures as data: the score and the job of every cell, and the value that the paper prints.

A cell of a learned representation is there twice, with the same value of the paper: by the recipe ``default``, which
shows what can be reached, and by the paper's encoder with its own recipe, which shows what the method as released gives
for as many steps as a scale allows. Nothing is computed here; `representation.reproduction.work` does the jobs,
`state` fills the cells.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from representation.loss_kinds import LOSS_KINDS
from representation.paper import published, published_ablation, published_factor
from representation.reproduction.variations import AUGMENTATIONS, FAULTS, LATENTS, UNTRANSPOSED
from zootools.errors import SpecError, did_you_mean

RELEASED = "paper's encoder"
"""Ends the rows and columns of the paper's encoder."""
BASELINES, VARIANCES = "baselines", "variances"
PAPER_LOSSES = ("Ec", "ED", "EcD", "Ec+D")
"""In the order of the paper's tables."""
LABELS = {
    "reconstruction": "Rec",
    "epoch": "Eph",
    "test_accuracy": "Acc",
    "generalization_gap": "GGap",
    **{f"test_f1_{label}": f"F1 C{label}" for label in range(4)},
    "lr": "LR",
    "l2": "L2",
    "dropout": "Drop",
    "train_fraction": "TF",
    "activation": "Act",
    "init": "Init",
    "optimizer": "Opt",
}
"""The names of the properties in the paper."""
RUNNING_GAP = "running_generalization_gap"
"""The generalisation gap as the paper's released code measures it (`representation.reproduction.faults`)."""
GAP_LOSSES = {"tetris_seed": "EcD", "mnist_seed": "Ec+D", "fashion_seed": "Ec+D"}
"""The zoos that are scored on `RUNNING_GAP`, and the losses of the paper's tables. Elsewhere models learn so fast in
their first epoch that the accuracies before and after it do not give that of its steps."""
CLASSES = ("activation", "init", "optimizer")
"""Categorical properties: their score is the accuracy, not R2."""
F1 = tuple(f"test_f1_{label}" for label in range(4))
MNIST = ("mnist_seed", "mnist_hyp_1_fix", "mnist_hyp_1_rand", "mnist_hyp_5_fix", "mnist_hyp_5_rand")
LARGE = ("mnist_hyp", "fashion_hyp", "cifar10_hyp", "svhn_hyp")
SEEDS = ("mnist_seed", "fashion_seed", "svhn_seed")
ZOOS = ("tetris_seed", "mnist_seed", "tetris_hyp", *MNIST[1:], *LARGE, *SEEDS[1:])
"""Every zoo of the paper in the order of building: zoos of many cells that are built quickly come first."""


@dataclass(frozen=True)
class Job:
    """One computation on a zoo: ``baselines``, ``variances``, or an encoder trained with a loss."""

    zoo: str
    method: str
    variation: str = ""
    """A change of the encoder: a name in `variations.VARIATIONS`."""
    released: bool = False
    """Whether the encoder is the paper's, with the recipe of its released code, instead of the recipe ``default``."""

    @property
    def name(self) -> str:
        """The name of the job, and of its files."""
        return "-".join(filter(None, (self.zoo, self.method, "paper" * self.released, self.variation)))

    @property
    def learns(self) -> bool:
        """Whether an encoder is trained."""
        return self.method in PAPER_LOSSES

    @property
    def last(self) -> bool:
        """Whether it is done after all other jobs: it takes long (the paper's encoder), or fills few cells."""
        return self.released or self.variation in (*AUGMENTATIONS, *FAULTS)

    @property
    def transfers(self) -> tuple[str, ...]:
        """The other zoos on which encoder and probes are scored (Table 7, Figures 11 to 14)."""
        if self.variation or self.method not in (BASELINES, "Ec+D"):
            return ()
        family = LARGE if self.zoo in LARGE else SEEDS if self.zoo == SEEDS[0] else ()
        return tuple(zoo for zoo in family if zoo != self.zoo)


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its score, its place, and the value that the paper prints there."""

    row: str
    column: str
    job: Job
    method: str
    """The name in the results: of the loss, or of a baseline."""
    target: str
    paper: float | None
    """R2 and accuracy as fractions; None if the paper prints nothing."""
    metric: str = "r2"
    evaluated_on: str = ""
    """Name of the zoo if it is not the job's, else empty."""
    split: str = "test"

    @property
    def percent(self) -> bool:
        """Whether it is shown in percent."""
        return self.metric in ("r2", "accuracy")


@dataclass(frozen=True)
class Item:
    """A table or a figure."""

    name: str
    title: str
    grids: tuple[tuple[Cell, ...], ...] = ()
    """The scores, in one or more grids of rows and columns."""
    note: str = ""
    picture: bool = False
    zoos: tuple[str, ...] = ()
    """Zoos that the picture shows."""
    encoders: tuple[Job, ...] = ()
    """Encoders that the picture shows."""

    @property
    def heading(self) -> str:
        """``Table 1. <title>``; of an item that the paper does not have, its title."""
        for kind in ("table", "figure"):
            if self.name.startswith(kind):
                return f"{kind.title()} {self.name.removeprefix(kind)}. {self.title}"
        return self.title

    @property
    def cells(self) -> Iterator[Cell]:
        """The cells of all grids."""
        return (cell for grid in self.grids for cell in grid)

    @property
    def jobs(self) -> list[Job]:
        """The jobs that it needs."""
        return list(dict.fromkeys([*(cell.job for cell in self.cells), *self.encoders]))

    @property
    def needed_zoos(self) -> set[str]:
        """The zoos that it needs."""
        evaluated = {cell.evaluated_on for cell in self.cells if cell.evaluated_on}
        return evaluated | {job.zoo for job in self.jobs} | set(self.zoos)


def zoo_label(zoo: str) -> str:
    """Return the name of a zoo in the paper: ``MNIST-HYP-1-FIX-SEED``."""
    return zoo.upper().replace("_", "-") + ("-SEED" if zoo.endswith(("_fix", "_rand")) else "")


def _score(row: str, column: str, zoo: str, method: str, target: str) -> Cell:
    """Return a cell for a property on the test split of the job's own zoo."""
    job = Job(zoo, method if method in PAPER_LOSSES else BASELINES)
    metric = "accuracy" if target in CLASSES else "r2"
    return Cell(row, column, job, method, target, published(zoo, zoo, method, target, metric), metric)


def _twice(cell: Cell, by: Literal["row", "column"]) -> Iterator[Cell]:
    """Yield a cell, and if it is of an encoder one of the paper's in a row or column of its own."""
    yield cell
    if cell.job.learns:
        second = replace(cell, job=replace(cell.job, released=True))
        if by == "row":
            yield replace(second, row=f"{cell.row}, {RELEASED}")
        else:
            yield replace(second, column=f"{cell.column}, {RELEASED}")


def _table1() -> Iterator[Cell]:
    for loss in PAPER_LOSSES:
        for target in ("reconstruction", "epoch", "test_accuracy", *F1):
            if target != "reconstruction" or LOSS_KINDS[loss].reconstructs:
                yield from _twice(_score(loss, LABELS[target], "tetris_seed", loss, target), "row")


def _table2() -> Iterator[Cell]:
    for name in ("FF", "AttW", "AttW+t", "AttN", "AttN+t", "default"):
        for target in ("reconstruction", "epoch", "test_accuracy", *F1):
            cell = _score(name, LABELS[target], "tetris_seed", "EcD", target)
            if name == "AttN+t":
                cell = replace(cell, job=Job("tetris_seed", "EcD", released=True))
            elif name != "default":
                paper = published_ablation("architecture", name, target)
                cell = replace(cell, job=Job("tetris_seed", "EcD", name, released=True), paper=paper)
            yield cell


def _table3() -> Iterator[Cell]:
    for loss in ("ED", "EcD", "Ec+D"):
        for letters in AUGMENTATIONS:
            cell = _score(loss, letters, "tetris_seed", loss, "reconstruction")
            if letters != "PE":
                paper = published_ablation("augmentation", letters, loss)
                cell = replace(cell, job=Job("tetris_seed", loss, letters), paper=paper)
            yield from _twice(cell, "row")


def _table4_factors() -> Iterator[Cell]:
    for zoo in MNIST:
        for row, target in (("VAR", "variance"), ("VARc", "variance_within")):
            paper = published_factor(zoo, target)
            yield Cell(row, zoo_label(zoo), Job(zoo, VARIANCES), VARIANCES, target, paper, "variance", split="all")
    for zoo in MNIST:
        paper = published_factor(zoo, "reconstruction_train")
        job = Job(zoo, "Ec+D")
        yield from _twice(Cell("Rtr", zoo_label(zoo), job, "Ec+D", "reconstruction", paper, split="train"), "row")
    for zoo in MNIST:
        yield from _twice(_score("Rtes", zoo_label(zoo), zoo, "Ec+D", "reconstruction"), "row")


def _table4_tasks() -> Iterator[Cell]:
    losses = dict(zip(MNIST, ("Ec+D", "EcD", "Ec+D", "EcD", "EcD"), strict=True))
    for zoo, loss in losses.items():
        for target in ("epoch", "test_accuracy", "generalization_gap", *(["init"] if zoo != "mnist_seed" else [])):
            for column, method in (("W", "W"), ("s(W)", "s(W)"), ("learned", loss)):
                yield from _twice(_score(f"{zoo_label(zoo)} {LABELS[target]}", column, zoo, method, target), "column")


def _table5(zoo: str) -> Iterator[Cell]:
    more = F1 if zoo == "tetris_seed" else ("lr", "activation", "init")
    for target in ("epoch", "test_accuracy", "generalization_gap", *more):
        for method in ("W", "PCA-linear", "PCA-cosine", "PCA-rbf", "UMAP", "s(W)", "EcD"):
            yield from _twice(_score(LABELS[target], method, zoo, method, target), "column")


def _by_zoo(zoos: Sequence[str], targets: Sequence[str], loss: str) -> Iterator[Cell]:
    for zoo in zoos:
        for target in targets:
            for method in ("W", "s(W)", loss):
                yield from _twice(_score(f"{zoo_label(zoo)} {LABELS[target]}", method, zoo, method, target), "column")


def _table12() -> Iterator[Cell]:
    for loss in ("Ec", "ED", "EcD"):
        for c in LATENTS:
            for target in ("reconstruction", "epoch", "test_accuracy", "generalization_gap", *F1):
                if target == "reconstruction" and not LOSS_KINDS[loss].reconstructs:
                    continue
                cell = _score(f"{loss}, c = {c}", LABELS[target], "tetris_seed", loss, target)
                if c != 2:
                    paper = published_ablation(f"compression_{c}", loss, target)
                    cell = replace(cell, job=Job("tetris_seed", loss, f"c{c}"), paper=paper)
                yield from _twice(cell, "row")


def _transfer(homes: Sequence[str], zoos: Sequence[str], target: str, metric: str, item: str) -> Iterator[Cell]:
    """Yield cells for a property that is predicted on other zoos and on the job's own."""
    for home in homes:
        for zoo in zoos:
            for method in ("W", "s(W)", "Ec+D"):
                job = Job(home, method if method in PAPER_LOSSES else BASELINES)
                row = f"{zoo_label(home)} on {'itself' if zoo == home else zoo_label(zoo)}"
                row += {"kendall_tau": ", tau", "r2": ", R2"}[metric]
                paper = published(home, zoo, method, target, metric, item)
                away = "" if zoo == home else zoo
                yield from _twice(Cell(row, method, job, method, target, paper, metric, away), "column")


def _transfer_figure(number: int, target: str, zoos: Sequence[str]) -> Item:
    name = f"figure{number}"
    grids = tuple(tuple(_transfer(zoos[:1], zoos, target, metric, name)) for metric in ("kendall_tau", "r2"))
    title = f"{LABELS[target]} in and out of distribution, learned on {zoo_label(zoos[0])}"
    swapped = "The paper's rows are swapped in print; its R2 off home are taken as fractions."
    note = swapped if number == 14 else ""
    return Item(name, title, grids, note, picture=True, zoos=tuple(zoos), encoders=(Job(zoos[0], "Ec+D"),))


def _faults() -> Iterator[Cell]:
    """Yield cells that the paper does not have, with a fault of its released code and without."""
    rows = (
        ("Ec+D, the contrast attracts (equation 3)", "Ec+D", ""),
        ("Ec+D, the contrast repels", "Ec+D", "repels"),
        ("EcD without permutations, two views", "EcD", "E"),
        ("EcD without permutations, one view twice", "EcD", "identical"),
        ("EcD, every order of the neurons", "EcD", ""),
        ("EcD, six orders of the neurons", "EcD", "six"),
        ("EcD, kernels transposed", "EcD", ""),
        ("EcD, kernels as TensorFlow has them", "EcD", UNTRANSPOSED),
    )
    for row, loss, variation in rows:
        for target in ("reconstruction", "epoch", "test_accuracy", "generalization_gap"):
            job = Job("tetris_seed", loss, variation)
            yield from _twice(Cell(row, LABELS[target], job, loss, target, None), "row")


def _gap() -> Iterator[Cell]:
    """Yield cells for the gap of checkpoints, and for that of the released code, which the paper's values are of."""
    for zoo, loss in GAP_LOSSES.items():
        for method in ("W", "s(W)", loss):
            column = "learned" if method == loss else method
            cell = _score(f"{zoo_label(zoo)}, of the checkpoint", column, zoo, method, "generalization_gap")
            over = replace(cell, row=f"{zoo_label(zoo)}, over the epoch", target=RUNNING_GAP)
            yield from (replace(cell, paper=None), over)


_DOUBT = "The paper's PCA and UMAP values below 1 are as printed; their unit is doubtful."
_SCORES = "R2 on the test split in %"

ITEMS: dict[str, Item] = {
    item.name: item
    for item in (
        Item("table1", f"Losses on TETRIS-SEED. {_SCORES}", (tuple(_table1()),)),
        Item(
            "table2",
            f"Encoders on TETRIS-SEED, loss EcD. {_SCORES}",
            (tuple(_table2()),),
            "The first five are the paper's encoders, AttN+t that of its other tables, with the recipe of its code. "
            "The last row is by our recipe, and has the paper's values of AttN+t beside it.",
        ),
        Item(
            "table3",
            "Augmentations on TETRIS-SEED: permutation P, erasing E, noise N. R2 of the reconstruction in %",
            (tuple(_table3()),),
        ),
        Item(
            "table4",
            "Generating factors of the MNIST zoos. R2, accuracy (Init) and reconstruction in %, variances as they are",
            (tuple(_table4_factors()), tuple(_table4_tasks())),
            "VAR is the variance of each weight over all checkpoints, averaged over weights; VARc its mean over the "
            "groups of one initialisation and activation. Rtr and Rtes are of Ec+D on the train and the test split.",
        ),
        Item(
            "table5",
            f"TETRIS-SEED and TETRIS-HYP. {_SCORES}, accuracy for Act and Init",
            (tuple(_table5("tetris_seed")), tuple(_table5("tetris_hyp"))),
            _DOUBT,
        ),
        Item(
            "table6",
            f"The zoos of Unterthiner et al. {_SCORES}, accuracy for Act, Init and Opt",
            (
                tuple(
                    _by_zoo(
                        LARGE,
                        (
                            "epoch",
                            "test_accuracy",
                            "generalization_gap",
                            "lr",
                            "l2",
                            "dropout",
                            "train_fraction",
                            *CLASSES,
                        ),
                        "EcD",
                    )
                ),
            ),
        ),
        Item(
            "table7",
            "Generalisation gap out of distribution. Kendall's tau on the test split",
            (tuple(_transfer(LARGE, LARGE, "generalization_gap", "kendall_tau", "table7")),),
        ),
        Item(
            "table8",
            "The zoos",
            note="Our values describe the specifications at full scale, with epoch 0 and every axis that varies. "
            "The paper's small table below it compares collections of zoos by ticks; there is nothing to measure.",
        ),
        Item("table9", "Settings of the zoos", note="Our values describe the specifications at full scale."),
        Item("table10", "The network of the TETRIS zoos"),
        Item(
            "table11",
            "The network of the MNIST zoos",
            note="The paper's third pooling and its 200 parameters of fc2 do not make its own 2464; its code has ours.",
        ),
        Item("table12", f"Compression on TETRIS-SEED, c = N / L. {_SCORES}", (tuple(_table12()),)),
        Item(
            "table13",
            f"MNIST-SEED and FASHION-SEED. {_SCORES}",
            (tuple(_by_zoo(SEEDS[:2], ("epoch", "test_accuracy", "generalization_gap"), "Ec+D")),),
        ),
        Item("figure4", "UMAP of the MNIST zoos' weights, by initialisation", picture=True, zoos=MNIST),
        Item("figure5", "Training a permuted network is permuting a trained one", picture=True),
        Item("figure6", "The four shapes of the tetris images", picture=True),
        Item("figure7", "Properties of the MNIST zoos", picture=True, zoos=MNIST),
        Item(
            "figure8",
            "UMAP of MNIST-HYP: weights, statistics, learned representation",
            picture=True,
            zoos=("mnist_hyp",),
            encoders=(Job("mnist_hyp", "EcD"),),
        ),
        Item("figure9", "The network of the TETRIS zoos", picture=True),
        Item("figure10", "The network of the MNIST zoos", picture=True),
        _transfer_figure(11, "test_accuracy", LARGE),
        _transfer_figure(12, "epoch", LARGE),
        _transfer_figure(13, "generalization_gap", LARGE),
        _transfer_figure(14, "test_accuracy", SEEDS),
        Item(
            "faults",
            f"Faults of the paper's released code, and what they cost on TETRIS-SEED. {_SCORES}",
            (tuple(_faults()),),
            "The paper has no such table. The row of each fault is below the row without it: the contrast of Ec+D has "
            "the opposite sign of equation 3; without permutations both views of a network are one array; a layer of "
            "four neurons has six of its 24 orders (here six of 120); kernels of TensorFlow are not transposed.",
        ),
        Item(
            "gap",
            f"The generalisation gap as the paper's released code measures it. {_SCORES}",
            (tuple(_gap()),),
            "The paper has no such table; the values beside ours are those of its Tables 5 and 13. Its released code "
            "counts the training accuracy over the steps of an epoch, while the weights change, and measures the test "
            "accuracy of the checkpoint. So its gap also contains the progress of the epoch, which epoch and accuracy "
            "determine. A zoo has no accuracy over an epoch: the mean of the training accuracies before and after the "
            "epoch approximates it (compared by benchmarks/running_accuracy.py).",
        ),
    )
}
"""All tables and figures that can be reproduced, and the tables of faults of the released code, by name."""


def find_items(names: Sequence[str]) -> list[Item]:
    """Return the items of some names, in the paper's order; ``all`` names all. Raises SpecError for other names."""
    for name in names:
        if name != "all" and name not in ITEMS:
            raise SpecError(f"{name!r}: not a table or figure of the paper{did_you_mean(name, [*ITEMS, 'all'])}")
    return [item for name, item in ITEMS.items() if "all" in names or name in names]


def all_zoos(items: Sequence[Item]) -> list[str]:
    """Return the zoos that some items need, each once, in the order of building."""
    needed = {zoo for item in items for zoo in item.needed_zoos}
    return [zoo for zoo in ZOOS if zoo in needed]


def all_jobs(items: Sequence[Item]) -> list[Job]:
    """Return the jobs of some items, each once, in the order of their zoos; those that are `last` come at the end.

    Those of the paper's encoder come after all others: they take most of the time, so a reproduction that is
    interrupted has as many results as possible.
    """
    jobs = dict.fromkeys(job for item in items for job in item.jobs)

    def order(job: Job) -> tuple[bool, bool, bool, int, bool]:
        return job.released, job.last, job.variation.startswith("AttW"), ZOOS.index(job.zoo), job.learns

    return sorted(jobs, key=order)
