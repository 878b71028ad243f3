"""Scales of a reproduction: `smoke` for tests, `cpu` for hours, `paper` for days, `full` as in the paper."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from representation.recipes import Recipe, load_recipe
from representation.reproduction.items import LARGE, MNIST, SEEDS, ZOOS, Item, Job
from representation.reproduction.variations import VARIATIONS
from zootools.bundled import find_spec
from zootools.errors import SpecError, did_you_mean
from zootools.images.shapes import has_images
from zootools.paths import data_folder
from zootools.spec import DatasetImages, ZooSpec, load_spec
from zootools.spec.images import ImageSetName

Changes = tuple[str, ...]
"""Overrides ``"key=value"``, as for ``--set``."""


@dataclass(frozen=True)
class StandIn:
    """Images that a scale uses in place of others whose files are not here."""

    name: str
    """As remarks name it."""
    train: int
    """Most training images, as `test` is most test images."""
    test: int
    section: Mapping[str, str | int | float]
    """Further keys of the section ``images``."""
    kept: tuple[str, ...] = ()
    """Keys that keep the value which they have for the images that are replaced."""

    def of(self, images: DatasetImages) -> str:
        """Return the override of a specification that has these images."""
        section: dict[str, Any] = {key: value for key, value in images.dump().items() if key in self.kept}
        section |= {"train": min(images.train, self.train), "test": min(images.test or self.test, self.test)}
        if images.crop and "crop" in self.kept:
            section["size"] = images.crop
        return f"images={json.dumps({**self.section, **section})}"

    def at_hand(self, data: Path | None) -> bool:
        """Return whether its files are there."""
        folder = self.section.get("folder")
        return folder is None or (data_folder(data) / str(folder)).is_dir()


DIGITS = StandIn("scikit-learn's digits", 1297, 500, {"name": "digits", "size": 28, "mean": 0.305, "std": 0.325})
SVHN10K = StandIn(
    "svhn10k (10,000 of the 26,032 test images of SVHN; 8,000 to train, 2,000 to test)",
    8000,
    2000,
    {"name": "image_folder", "folder": "svhn10k", "size": 32},
    kept=("crop", "greyscale", "mean", "std"),
)
"""Figures that come from it are marked, since this is not the data set's own split."""


@dataclass(frozen=True, eq=False)
class Scale:
    """Overrides of specifications and recipes, and limits."""

    name: str
    description: str
    recipe: str
    """The recipe of every encoder but the paper's."""
    zoos: Mapping[str, Changes] = field(default_factory=dict)
    """Overrides of the specification, by zoo."""
    recipes: Mapping[str, Changes] = field(default_factory=dict)
    """Overrides of the recipe, by zoo."""
    released: Mapping[str, Changes] = field(default_factory=lambda: dict.fromkeys(ZOOS, ()))
    """Overrides of the recipes ``{zoo}_paper_code``, by zoo. The paper's encoder is trained on these zoos only."""
    variations: Mapping[str, Changes] = field(default_factory=dict)
    """Further overrides of both recipes, by variation."""
    backend: str = "auto"
    """The backend that trains zoos."""
    points: int = 5_000
    """Most checkpoints that a picture shows as points."""
    stand_ins: Mapping[str, StandIn] = field(default_factory=dict)
    """By image set, the images in place of its missing files; files without one are downloaded."""
    seeds: int = 1
    """Encoders for each cell."""

    def spec(self, zoo: str, stand_in: StandIn | None = None) -> ZooSpec:
        """Return the specification of a zoo, with other images if they stand in for its own."""
        return load_spec(find_spec(zoo), self.zoo_changes(zoo, stand_in))

    def zoo_changes(self, zoo: str, stand_in: StandIn | None = None) -> Changes:
        """Return the overrides of a zoo's specification."""
        changes = self.zoos.get(zoo, ())
        if stand_in is None:
            return changes
        images = load_spec(find_spec(zoo), changes).images
        assert isinstance(images, DatasetImages)
        return (*changes, stand_in.of(images))

    def stand_in(self, zoo: str, data: Path | None) -> StandIn | None:
        """Return what takes the place of a zoo's images, whose files are not in the data folder, if it is there."""
        images = self.spec(zoo).images
        found = None if has_images(images, data) else self.stand_ins.get(images.name)
        return found if found is not None and found.at_hand(data) else None

    def has(self, job: Job) -> bool:
        """Return whether a job is done at this scale."""
        return not job.released or job.zoo in self.released

    def part_of(self, item: Item) -> Item:
        """Return an item without the cells that this scale leaves out, with a remark on them."""
        grids = tuple(tuple(cell for cell in grid if self.has(cell.job)) for grid in item.grids)
        return item if grids == item.grids else replace(item, grids=grids, note=f"{item.note} {LEFT_OUT}".strip())

    def recipe_of(self, job: Job) -> Recipe:
        """Return the recipe of a job's encoder; for baselines, of the encoder that they are compared with."""
        name, changes = self.recipe_words(job)
        return load_recipe(name, changes)

    def recipe_words(self, job: Job) -> tuple[str, Changes]:
        """Return the name of a job's recipe, and the overrides."""
        loss = (f"loss.kind={job.method}",) if job.learns else ()
        own = (*VARIATIONS[job.variation], *self.variations.get(job.variation, ()))
        if job.released:
            return f"{job.zoo}_paper_code", (*self.released[job.zoo], *loss, *own)
        return self.recipe, (*self.recipes.get(job.zoo, ()), *loss, *own)


LEFT_OUT = (
    "At this scale the paper's encoder is trained on the TETRIS zoos only: on these networks one of its steps takes "
    "about a minute of one core."
)
_SPLIT = "split={train: 0.6, validation: 0.2, test: 0.2}"
_SMOKE_TETRIS = ("models=36", "training.epochs=3", "images.train=60", "images.test=100", _SPLIT)
_SMOKE_CNN = (
    "models=32",
    "training={epochs: 2, batch_size: 20, train_metrics_images: 100}",
    "images.train=100",
    "images.test=100",
    _SPLIT,
)
# Two stacks instead of sixteen: with few models and steps, writing files takes most of the time.
_SMOKE_HYP = (*_SMOKE_CNN, "grid.activation=[tanh, relu]", "grid.optimizer=[adam]", "grid.dropout=[0.0]")
_SMOKE_LARGE = (
    "sample.count=32",
    "training={epochs: 3, batch_size: 50}",
    "images.train=200",
    "images.test=100",
    _SPLIT,
)
_CPU_IMAGES = ("images.test=1000", "training.train_metrics_images=1000")
# Models that differ only in the seed: most must learn, or there is nothing to predict. So fewer models, more images.
_CPU_SEED = ("models=120", "images.train=20000", *_CPU_IMAGES)
_CPU_HYP = ("models=256", "images.train=4000", "training.epochs=15", *_CPU_IMAGES)
_CPU_LARGE = (
    "sample.count=300",
    "images.train=2000",
    "images.test=1000",
    "training={epochs: 20, batch_size: 64, train_metrics_images: 1000, checkpoint_epochs: [0, 1, 2, 3, 5, 10, 15, 20]}",
)
_CPU_RELEASED = ("training.epochs=1", "training.steps=25")
# Up to a tenth of these checkpoints explodes and stays finite, and would dominate linear probes and variances. The
# limit is from the notebook of the authors' later data set; the largest weights of healthy models are just below it.
_DEAD = "largest_weight=5"
_TINY = (
    *("training.epochs=1", "training.steps=3", "training.batch_size=100", "training.lr=1.0e-3"),
    *("encoder.width=16", "encoder.blocks=1", "encoder.hidden=32", "head={layers: 1, hidden: 16, outputs: 8}"),
)
_SMOKE_LATENT = dict.fromkeys(ZOOS, ("encoder.latent=16",)) | {"tetris_seed": ("encoder.latent=50",)}

SCALES = {
    scale.name: scale
    for scale in (
        Scale(
            "smoke",
            "Tiny zoos and encoders, to see that everything runs; the figures mean nothing.",
            "default",
            {
                "tetris_seed": _SMOKE_TETRIS,
                "tetris_hyp": (*_SMOKE_TETRIS, "models=60"),
                **dict.fromkeys(SEEDS, _SMOKE_CNN),
                **dict.fromkeys(MNIST[1:], _SMOKE_HYP),
                **dict.fromkeys(LARGE, _SMOKE_LARGE),
            },
            {zoo: (*_TINY, *latent) for zoo, latent in _SMOKE_LATENT.items()},
            {zoo: (*_TINY, "encoder.heads=2", *latent) for zoo, latent in _SMOKE_LATENT.items()},
            stand_ins=dict.fromkeys(get_args(ImageSetName), DIGITS),
            backend="torch",  # no kernel is compiled for so little
        ),
        Scale(
            "cpu",
            "Parts of the zoos; TETRIS-SEED is whole. The recipe `default`, shortened to 200 steps on CNNs, and on the "
            "TETRIS zoos the paper's encoder with 25 of its 105,000 steps, which take about as long as ours (10 with "
            "weight tokens): three hours of two cores.",
            "default",
            {
                "tetris_hyp": ("models=360",),
                **dict.fromkeys(SEEDS, _CPU_SEED),
                **dict.fromkeys(MNIST[1:], _CPU_HYP),
                **dict.fromkeys(LARGE, _CPU_LARGE),
            },
            dict.fromkeys((*MNIST, *SEEDS, *LARGE), ("training.epochs=4", _DEAD)),
            dict.fromkeys(("tetris_seed", "tetris_hyp"), _CPU_RELEASED),
            dict.fromkeys(("AttW", "AttW+t"), ("training.steps=10",)),
            points=2_000,
            stand_ins={"svhn": SVHN10K},
        ),
        Scale(
            "paper",
            "The TETRIS zoos, MNIST-SEED, FASHION-SEED and SVHN-SEED are whole; of the other MNIST zoos the half of "
            "the models with the smallest ids, of the large zoos a sample of 1,000 models, all with all images and "
            "epochs. Three seeds of the recipe `default`, and of the paper's encoder with 100 steps on the TETRIS "
            "zoos and 10 on CNNs, of 105,000. Days of two cores, in as many runs as it takes.",
            "default",
            {
                **dict.fromkeys(("mnist_hyp_1_fix", "mnist_hyp_1_rand"), ("models=576",)),
                **dict.fromkeys(("mnist_hyp_5_fix", "mnist_hyp_5_rand"), ("models=640",)),
                **dict.fromkeys(LARGE, ("sample.count=1000",)),
            },
            dict.fromkeys((*MNIST[1:], *LARGE), (_DEAD,)),
            {
                **dict.fromkeys(ZOOS, ("training.epochs=1", "training.steps=10", _DEAD)),
                **dict.fromkeys(("tetris_seed", "tetris_hyp"), ("training.epochs=4", "training.steps=25")),
            },
            dict.fromkeys(("AttW", "AttW+t"), ("training.epochs=1", "training.steps=25")),
            stand_ins={"svhn": SVHN10K},
            seeds=3,
        ),
        Scale(
            "full",
            "The zoos as the paper has them, the recipe `default`, and the encoders as the paper's released code has "
            "them.",
            "default",
            recipes=dict.fromkeys(MNIST[1:], (_DEAD,)),
            released={zoo: (_DEAD,) if zoo in MNIST[1:] else () for zoo in ZOOS},
            variations={"FF": ("training.lr=3.0e-4",)},
        ),
    )
}


def find_scale(name: str) -> Scale:
    """Return a scale by its name. Raises SpecError for an unknown name."""
    if name not in SCALES:
        raise SpecError(f"--scale: found {name!r}{did_you_mean(name, SCALES)}")
    return SCALES[name]
