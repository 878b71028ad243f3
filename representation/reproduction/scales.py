"""Scales of a reproduction: `smoke` for tests, `cpu` for an hour or two, `full` as in the paper."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from representation.recipes import Recipe, load_recipe
from representation.reproduction.items import LARGE, MNIST, SEEDS, VARIATIONS, Job
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
    """The recipe of every encoder; ``{zoo}`` is replaced by the zoo's name."""
    zoos: Mapping[str, Changes] = field(default_factory=dict)
    """Overrides of the specification, by zoo."""
    recipes: Mapping[str, Changes] = field(default_factory=dict)
    """Overrides of the recipe, by zoo."""
    variations: Mapping[str, Changes] = field(default_factory=dict)
    """Further overrides of the recipe, by variation."""
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

    def recipe_of(self, job: Job) -> Recipe:
        """Return the recipe of a job's encoder; for baselines, of the encoder that they are compared with."""
        name, changes = self.recipe_words(job)
        return load_recipe(name, changes)

    def recipe_words(self, job: Job) -> tuple[str, Changes]:
        """Return the name of a job's recipe, and the overrides."""
        loss = (f"loss.kind={job.method}",) if job.learns else ()
        own = (*VARIATIONS[job.variation], *self.variations.get(job.variation, ()))
        return self.recipe.format(zoo=job.zoo), (*self.recipes.get(job.zoo, ()), *loss, *own)


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
_SMALL = ("encoder.width=64", "encoder.hidden=128")
_CPU_TETRIS_RECIPE = (*_SMALL, "encoder.latent=50", "epochs.every=5", "training.batch_size=250", "training.epochs=16")
# Up to a tenth of these checkpoints explodes and stays finite, and would dominate linear probes and variances. The
# limit is from the notebook of the authors' later data set; the largest weights of healthy models are just below it.
_DEAD = "largest_weight=5"
_CPU_CNN_RECIPE = (*_SMALL, "training.batch_size=100", "training.epochs=40", _DEAD)

SCALES = {
    scale.name: scale
    for scale in (
        Scale(
            "smoke",
            "Tiny zoos and encoders, to see that everything runs; the figures mean nothing.",
            "smoke",
            {
                "tetris_seed": _SMOKE_TETRIS,
                "tetris_hyp": (*_SMOKE_TETRIS, "models=60"),
                **dict.fromkeys(SEEDS, _SMOKE_CNN),
                **dict.fromkeys(MNIST[1:], _SMOKE_HYP),
                **dict.fromkeys(LARGE, _SMOKE_LARGE),
            },
            {"tetris_seed": ("encoder.latent=50",)},
            stands_in=True,
            backend="torch",  # no kernel is compiled for so little
        ),
        Scale(
            "cpu",
            "Parts of the zoos, and small encoders with a short training, a quarter of it with weight tokens: about "
            "an hour of two cores where only MNIST is there, two where all image files are. TETRIS-SEED is whole.",
            "default",
            {
                "tetris_hyp": ("models=360",),
                **dict.fromkeys(SEEDS, _CPU_SEED),
                **dict.fromkeys(MNIST[1:], _CPU_HYP),
                **dict.fromkeys(LARGE, _CPU_LARGE),
            },
            {
                **dict.fromkeys(("tetris_seed", "tetris_hyp"), _CPU_TETRIS_RECIPE),
                **dict.fromkeys((*MNIST, *SEEDS, *LARGE), _CPU_CNN_RECIPE),
            },
            dict.fromkeys(("AttW", "AttW+t"), ("training.epochs=4",)),
            points=2_000,
        ),
        Scale(
            "full",
            "The zoos as the paper has them, and the encoders as its released code has them.",
            "{zoo}_paper_code",
            recipes=dict.fromkeys(MNIST[1:], (_DEAD,)),
            variations={"FF": ("training.lr=3.0e-4",)},
        ),
    )
}


def find_scale(name: str) -> Scale:
    """Return a scale by its name. Raises SpecError for an unknown name."""
    if name not in SCALES:
        raise SpecError(f"--scale: found {name!r}{did_you_mean(name, SCALES)}")
    return SCALES[name]
