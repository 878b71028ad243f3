"""Scales of a reproduction: `smoke` for tests, `cpu` for an hour or two, `full` as in the paper."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from representation.recipes import Recipe, load_recipe
from representation.reproduction.items import LARGE, MNIST, SEEDS, VARIATIONS, ZOOS, Item, Job
from zootools.bundled import find_spec
from zootools.errors import SpecError, did_you_mean
from zootools.spec import DatasetImages, ZooSpec, load_spec

Changes = tuple[str, ...]
"""Overrides ``"key=value"``, as for ``--set``."""


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
    stands_in: bool = False
    """Use bundled images in place of missing image files, instead of downloading them."""

    def spec(self, zoo: str, stand_in: bool = False) -> ZooSpec:
        """Return the specification of a zoo; with ``stand_in``, scikit-learn's digits replace its images."""
        return load_spec(find_spec(zoo), self.zoo_changes(zoo, stand_in))

    def zoo_changes(self, zoo: str, stand_in: bool = False) -> Changes:
        """Return the overrides of a zoo's specification."""
        changes = self.zoos.get(zoo, ())
        if not stand_in:
            return changes
        images = load_spec(find_spec(zoo), changes).images
        assert isinstance(images, DatasetImages)
        kept = f"train: {min(images.train, 1297)}, test: {min(images.test or 500, 500)}"
        return (*changes, f"images={{name: digits, {kept}, size: 28, mean: 0.305, std: 0.325}}")

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
            stands_in=True,
            backend="torch",  # no kernel is compiled for so little
        ),
        Scale(
            "cpu",
            "Parts of the zoos; TETRIS-SEED is whole. The recipe `default`, shortened to 200 steps on CNNs, and on the "
            "TETRIS zoos the paper's encoder with 25 of its 105,000 steps, which take about as long as ours (10 with "
            "weight tokens): an hour or two of two cores.",
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
