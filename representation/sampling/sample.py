"""Sampling networks from a density over a zoo, and writing them, with their audit, as a zoo.

>>> sampled = sample_zoo("zoos/mnist", "samples/mnist", "encoders/mnist", count=200, where="epoch >= 21", epochs=25)
>>> sampled.audit.rows[0].accuracy
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor

from representation.align_zoo import medoid
from representation.alignment import aligned
from representation.encoders.encoder import Encoder
from representation.existing import ExistingEncoder
from representation.sampling.audit import TrainingNetworks, audit, spread
from representation.sampling.density import (
    BANDWIDTH_METHODS,
    METHODS,
    PUBLISHED_BANDWIDTH,
    Settings,
    chosen_bandwidth,
    draw,
)
from representation.sampling.networks import Trainer, Weights
from representation.sampling.population import Samples, named
from representation.sampling.report import Sampled, curve_of, scratch_curve
from representation.sampling.source import Source
from representation.sampling.space import LatentSpace, Space, WeightSpace
from zootools.choices import check_word
from zootools.errors import SpecError, differences
from zootools.images.datasets import Subset
from zootools.importers.importing import write_derived
from zootools.open import open_zoo
from zootools.storage.audit import Curve
from zootools.storage.build_state import MANIFEST, ZooFolder
from zootools.storage.imported import SAMPLED
from zootools.storage.manifest import read_manifest
from zootools.text import say
from zootools.training.repeatable import one_thread
from zootools.zoo import Zoo

MOST = 100_000
SCORED_IMAGES = 2_000
"""Images, of the validation set or else the first training ones, by which draws are selected."""
MEMBERS_NAME = "networks of the zoo"
MEMBERS = 16
"""Networks of the zoo that are trained on beside the samples."""


@dataclass(frozen=True)
class SampleOptions:
    """What to sample. `sample_zoo` takes the fields as keyword arguments."""

    count: int = 100
    """Number of networks."""
    method: str = "kde"
    """A key of `representation.sampling.density.METHODS`."""
    bandwidth: float | None = PUBLISHED_BANDWIDTH
    """Standard deviation of the kernels, in units of z; None for that of the highest held-out likelihood."""
    best: float = 0.3
    """Share of the checkpoints, the most accurate ones, that the density is fitted to."""
    where: str | None = None
    """Condition on the metadata of these checkpoints; by default all epochs but 0."""
    align: bool = False
    """Bring these networks into one alignment first, that of their medoid (`representation.alignment`)."""
    epochs: int = 0
    """Epochs for which the samples are trained."""
    seed: int = 0
    """Of all draws."""
    data: Path | None = None
    """The folder of the image files."""
    quiet: bool = False
    """Show no progress."""

    def check(self) -> None:
        """Raise SpecError for values out of range, and for an unknown method."""
        check_word("method", self.method, tuple(METHODS))
        whole = {"count": (self.count, 2, MOST), "epochs": (self.epochs, 0, MOST), "seed": (self.seed, 0, 2**53)}
        for name, (value, low, high) in whole.items():
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise SpecError(f"{name}: found {value!r:.80}; expected a whole number from {low} to {high:,}")
        if not 0 < self.best <= 1:
            raise SpecError(f"best: found {self.best!r:.80}; expected a share above 0 and up to 1")
        if self.bandwidth is not None and not 0 < self.bandwidth < math.inf:
            raise SpecError(f"bandwidth: found {self.bandwidth!r:.80}; expected a number above 0, or auto")

    def texts(self) -> dict[str, str]:
        """Return the options that decide the samples, as the record of the zoo has them."""
        kernels = {"bandwidth": "auto" if self.bandwidth is None else f"{self.bandwidth:g}"}
        return {
            "method": self.method,
            "count": str(self.count),
            **(kernels if self.method in BANDWIDTH_METHODS else {}),
            "best": f"{self.best:g}",
            **({"where": self.where} if self.where else {}),
            **({"align": "yes"} if self.align else {}),
            "epochs": str(self.epochs),
            "seed": str(self.seed),
        }


class SampleKeywords(TypedDict, total=False):
    """The fields of `SampleOptions` as keyword arguments; mypy compares the two."""

    count: int
    method: str
    bandwidth: float | None
    best: float
    where: str | None
    align: bool
    epochs: int
    seed: int
    data: Path | None
    quiet: bool


def sample_zoo(
    zoo: Zoo | str | Path,
    out: str | Path,
    encoder: Encoder | str | Path | None = None,
    **keywords: Unpack[SampleKeywords],
) -> Sampled:
    """Draw networks from a density over a zoo's networks, audit them, train them on, and write them as a zoo.

    The density is over the representations of the best checkpoints of the train split, or over their weights. Epoch 0
    of the new zoo has the networks as they were drawn; the later epochs are those of the training that the networks of
    the old zoo had. The audit (`representation.sampling.audit`) is part of the new zoo, which is finished only with it.
    The same call again resumes; with one seed, and on one kind of processor, it gives the same bytes.

    Args:
        zoo: the zoo, its folder, or its name.
        out: the folder of the new zoo, which is created.
        encoder: the encoder with its decoder, its folder, or its name; None for a density over the weights.
        keywords: the fields of `SampleOptions`.

    Raises:
        SpecError: an argument is wrong; the encoder is for other layers; fewer than two models, or networks of several
            activations, are chosen; the chosen networks have equal representations, or weights that are not finite; or
            the folder holds something else.
        StorageError: the files of the images are not there; or the disk is full, or has failed.
        ZooNotFoundError: there is no such zoo or encoder.
        BusyError: another process is at work in ``out``.
    """
    options = SampleOptions(**keywords)
    options.check()
    opened, folder = zoo if isinstance(zoo, Zoo) else open_zoo(zoo), ZooFolder(Path(out))
    source = Source.of(opened, options.where, options.best)
    existing = None
    if encoder is not None:
        existing = ExistingEncoder.load(encoder)
        existing.check(opened)
    fitted_to = f"{len(source.chosen)} checkpoints of {len(source.chosen.models)} models"
    of_encoder = {"encoder": existing.sha256} if existing else {"space": "weights"}
    settings = of_encoder | options.texts() | {"fitted_to": fitted_to}
    if not _is_finished(folder, opened, settings):
        with one_thread():  # on whose number the bits of products depend
            space: Space = LatentSpace(existing.encoder) if existing else WeightSpace()
            _make(source, folder, space, options, settings)
    return Sampled.of(folder.path)


def _is_finished(folder: ZooFolder, zoo: Zoo, settings: dict[str, str]) -> bool:
    """Whether a folder has the zoo of a call already. Raises SpecError if it has another zoo."""
    folder.check_target()
    if not folder.has(MANIFEST):
        return False
    imported, parent = read_manifest(folder.path).imported, read_manifest(zoo.folder).sha256
    if imported is None or imported.parent is None or imported.parent.sha256 != parent or imported.kind != SAMPLED:
        raise SpecError(f"{folder.path}: holds another zoo; choose another folder with --out")
    if changes := differences(imported.options, settings, "asked for"):
        raise SpecError(
            f"{folder.path}: holds other samples; choose another folder with --out", *map("  {}".format, changes)
        )
    return True


def _make(source: Source, folder: ZooFolder, space: Space, options: SampleOptions, settings: dict[str, str]) -> None:
    """Draw, audit, train and write the networks."""

    def tell(text: str) -> None:
        if not options.quiet:
            say(f"sample: {text}", err=True)

    trainer = source.trainer(options.data, options.epochs)
    tell(f"density over {settings['fitted_to']}; backend {trainer.backend.name}")
    networks = source.chosen.weights()
    weights, notes = _draw(source, space, networks, trainer, options)
    tell(f"audit of {len(weights):,} networks")
    training = TrainingNetworks(networks.numpy(), source.model_numbers())
    audited = audit(weights, training, source.others.weights().numpy(), trainer, options.seed)
    if options.epochs:
        tell(f"training {MEMBERS} networks of the zoo on, to compare the samples with")
        curves = _curves(source, networks.numpy(), trainer, options)
        audited = audited._replace(audit=audited.audit.model_copy(update={"curves": curves}))
    write_derived(
        Samples(source, weights, audited, trainer, options.seed, settings, notes),
        folder,
        SAMPLED,
        settings,
        images_sha256=trainer.images.digest,
        data=options.data,
        audit=audited.audit,
        quiet=options.quiet,
    )


def _draw(
    source: Source, space: Space, networks: Tensor, trainer: Trainer, options: SampleOptions
) -> tuple[Weights, list[str]]:
    """Return the weights of new networks, float32 ``[count, parameters]``, and remarks for the card."""
    if options.align:
        networks = aligned(trainer.schema, networks, networks[medoid(source.chosen, networks)])
    images = trainer.images.validation if len(trainer.images.validation) else trainer.images.train
    images = Subset(images.images[:SCORED_IMAGES], images.labels[:SCORED_IMAGES])
    rows, notes = space.rows(networks), list[str]()
    settings = Settings(options.count, options.bandwidth, options.seed, tuple(source.model_numbers().tolist()))
    if options.bandwidth is None and options.method in BANDWIDTH_METHODS:
        settings = Settings(options.count, chosen_bandwidth(rows, settings), options.seed)
        notes.append(f"the bandwidth of the highest held-out likelihood is {settings.bandwidth:.3g}")

    def score(drawn: Tensor) -> Tensor:
        return torch.from_numpy(trainer.accuracy(space.weights(drawn).numpy(), images))

    weights = space.weights(draw(options.method, rows, settings, score)).numpy()
    if bad := int((~np.isfinite(weights)).any(axis=1).sum()):
        raise SpecError(f"{bad} of {len(weights)} sampled networks have weights that are NaN or infinite")
    return np.ascontiguousarray(weights), notes


def _curves(source: Source, networks: Weights, trainer: Trainer, options: SampleOptions) -> list[Curve]:
    """Return the accuracies of networks from scratch, and of networks of the zoo that are trained on."""
    same = source.hyperparameters.dump()
    curves = [scratch_curve(source.zoo, same, options.epochs)]
    some = spread(len(networks), MEMBERS)
    names, seeds = named(options.seed, "members", len(some))
    groups = list(trainer.train(networks[some], names, seeds))
    accuracies = [
        np.concatenate([group[epoch].info.properties["test_accuracy"] for group in groups if epoch < len(group)])
        for epoch in range(options.epochs + 1)
    ]
    return [*filter(None, curves), curve_of(MEMBERS_NAME, range(options.epochs + 1), accuracies)]
