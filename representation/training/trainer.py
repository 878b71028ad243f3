"""The training loop of an encoder: one epoch, and the state between two steps."""

import math
from collections.abc import Callable

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from representation.encoders.attention import projection_head
from representation.networks import Networks
from representation.recipes import Recipe
from representation.training.augmentation import Augmenter
from representation.training.behaviour import Behaviour
from representation.training.losses import Objective, Terms
from representation.training.optimizer import LOWERED, Adam, Plateau, one_cycle
from representation.training.reconstruction import reconstruction_r2
from representation.training.start import StatisticsPrediction, best_linear_code, start_encoder
from representation.training.threads import ThreadedEncoder
from zootools.architectures import Schema
from zootools.errors import SpecError
from zootools.rng import stream
from zootools.spec.sections import Section
from zootools.training.repeatable import make_products_repeatable

make_products_repeatable()

VALIDATED = 2_000
"""Most networks of the validation split, and of the train split, that the figures of an epoch are computed on."""


class TrainerState(Section):
    """The state of an `EncoderTrainer` after a step, but for its tensors."""

    epoch: int
    """Complete epochs."""
    step: int = 0
    """Complete steps of the next epoch."""
    lr: tuple[float, ...]
    """Learning rate of each parameter group of the optimizer."""
    schedule: dict[str, JsonValue] | None
    """The state of the learning rate's schedule; None for a constant rate."""


class EncoderTrainer:
    """Encoder, projection head, loss, augmentation and optimizer, trained epoch by epoch.

    All random numbers of an epoch come from generators that are seeded by (seed, epoch); the state within an epoch
    contains theirs.
    """

    def __init__(
        self,
        schema: Schema,
        train: Networks,
        validation: Networks,
        recipe: Recipe,
        seed: int,
        device: torch.device,
        behaviour: Behaviour | None = None,
    ) -> None:
        """Args ``train`` and ``validation`` are flat weights, float32 ``[n, N]``; ``behaviour`` has images.

        Raises SpecError if the recipe compares networks on images, and there are none.
        """
        if recipe.loss.behaviour and behaviour is None:
            raise SpecError("loss.behaviour: networks are compared on images, which are not known here")
        self.schema, self.behaviour = schema, behaviour.to(device) if behaviour and recipe.loss.behaviour else None
        recipe = recipe.sized(schema.size)
        self.recipe, self.seed, self.device, self.epoch, self.step = recipe, seed, device, 0, 0
        self.precision = choose_precision(recipe.training.precision, device)
        self.weights: Networks = train.to(device)
        # Shuffled, because a zoo is sorted by epoch: contrast within a batch of one epoch is a harder task.
        generator = self._seed_generators("validation order")
        order = torch.randperm(len(validation), generator=generator, device=device)
        self.validation: Tensor = validation.to(device)[order[:VALIDATED]]
        training = recipe.training
        self.augmenter = Augmenter(schema, recipe.augmentation)
        code = best_linear_code(schema, recipe, self.weights) if recipe.loss.reconstructs else None
        self._seed_generators("initialisation")
        self.encoder = start_encoder(schema, recipe, self.weights, code).to(device)
        threads = torch.get_num_threads()
        self.coded = ThreadedEncoder(self.encoder, recipe.loss.reconstructs, self.precision, threads)
        self.head = projection_head(recipe.encoder.compared, recipe.head).to(device)
        modules: list[nn.Module] = [self.encoder]
        modules += [self.head] if recipe.loss.contrasts else []
        self.prediction: StatisticsPrediction | None = None
        if recipe.loss.statistics:
            self.prediction = StatisticsPrediction(schema, recipe.encoder, self.weights).to(device)
            modules.append(self.prediction)
        self.objective = Objective(recipe.loss, schema, self._permuted(self.weights))
        self.linear_r2 = code.r2(self._permuted(self.validation)) if code else None
        """R2 of the best linear code of the same length, on the permuted validation split; None without a decoder."""
        self.optimizer = Adam(modules, training.lr, training.weight_decay, recipe.encoder.widest)
        self.batch_size = min(training.batch_size, len(self.weights))
        self.steps = training.steps_of_epoch(len(self.weights))
        self.plateau = Plateau() if training.schedule == "plateau" else None
        self._restored: dict[str, Tensor] = {}

    def train_epoch(self, tick: Callable[[float], None] = lambda share: None) -> dict[str, float]:
        """Train for one epoch, or the steps that are left of it; return the mean loss and its parts.

        After each step ``tick`` is called with the finished share of the epoch; it may call `save`.
        """
        self._generator = self._seed_generators("epoch", self.epoch + 1)
        weights, generator = self.weights, self._generator
        # Checkpoints that do not fill a batch are left out; they are others in every epoch.
        passes = math.ceil(self.steps * self.batch_size / len(weights))
        orders = [torch.randperm(len(weights), generator=generator, device=self.device) for _ in range(passes)]
        order = torch.cat(orders)
        if self.step == 0:
            self._sums = torch.zeros(len(Terms._fields), device=self.device)
        else:
            self._restore_within_epoch()
        self.encoder.train()
        self.head.train()
        with self.coded.surroundings():
            for step in range(self.step, self.steps):
                self._set_rates(step)
                batch = order[step * self.batch_size : (step + 1) * self.batch_size]
                terms = self.loss(weights[batch], generator)
                self.optimizer.zero_grad()
                terms.total.backward()
                self.optimizer.step()
                self._sums += torch.stack(terms).detach()
                self.step = step + 1
                tick(self.step / self.steps)
        self._set_rates(self.steps)
        self.epoch, self.step = self.epoch + 1, 0
        means = self._named(self._sums / self.steps)
        if self.plateau is not None and self.plateau.is_reached(means["total"]):
            self.optimizer.rates = tuple(LOWERED * rate for rate in self.optimizer.rates)
        return means

    def _set_rates(self, step: int) -> None:
        """Set the learning rates of a step of the epoch in progress, from 0, if they follow from it."""
        if self.recipe.training.schedule == "one_cycle":
            progress = (self.epoch * self.steps + step) / (self.recipe.training.epochs * self.steps)
            self.optimizer.rates = tuple(rate * one_cycle(progress) for rate in self.optimizer.highest)

    def loss(self, weights: Tensor, generator: torch.Generator) -> Terms:
        """Return the loss of two new views of each of the networks ``[n, N]``."""
        views = self.augmenter.views(weights, generator)
        z, outputs = self.coded(views.augmented)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            compared = z[:, : self.recipe.encoder.compared]
            projected = self.head(compared) if self.recipe.loss.contrasts else None
            errors = self.prediction(compared, weights) if self.prediction is not None else None
        target = views.clean if self.recipe.loss.target == "clean" else views.augmented
        behaviour = None
        if self.behaviour is not None and outputs is not None:
            behaviour = self.behaviour.loss(self.schema, outputs, views.clean, generator)
        return self.objective(outputs, target, projected, errors, behaviour)

    def _named(self, terms: Tensor) -> dict[str, float]:
        """Return the terms of the loss by name; without the behaviour if the loss does not have it."""
        values = dict(zip(Terms._fields, terms.tolist(), strict=True))
        return values if self.behaviour is not None else {k: v for k, v in values.items() if k != "behaviour"}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return the loss and its terms on the validation split, and R2 (key ``r2``) if the loss reconstructs.

        The views are the same in every call. There is no R2 if all networks are equal.
        """
        generator = self._seed_generators("validation")
        self.encoder.eval()
        self.head.eval()
        weights, sums = self.validation, torch.zeros(len(Terms._fields), device=self.device)
        with self.coded.surroundings():
            for batch in weights.split(self.batch_size):
                sums += torch.stack(self.loss(batch, generator)) * len(batch)
        return self._named(sums / len(weights)) | self.reconstruction_r2(weights)

    def reconstruction_r2(self, weights: Networks) -> dict[str, float]:
        """Return R2 of reconstructed networks ``[n, N]`` under the key ``r2``; nothing without a reconstruction.

        The networks are permuted, without erasing or noise, in the same way in every call.
        """
        if not self.recipe.loss.reconstructs:
            return {}
        r2 = reconstruction_r2(self._permuted(weights), self.encoder.reconstruct)
        return {} if math.isnan(r2) else {"r2": r2}

    def _permuted(self, weights: Networks) -> Tensor:
        """Return at most `VALIDATED` of some networks, permuted if the recipe permutes; always the same."""
        seed = int(stream(self.seed, "encoder", "permuted").integers(2**63))
        generator = torch.Generator(self.device).manual_seed(seed)
        # Drawn at random: every k-th network of a zoo, which is sorted by epoch and model, can be the same few models.
        some = weights[torch.randperm(len(weights), generator=generator, device=self.device)[:VALIDATED]]
        return self.augmenter.views(some, generator, copies=1).clean

    def save(self) -> tuple[dict[str, Tensor], TrainerState]:
        """Return the tensors of the state after the last step, which the next step changes, and the rest of it."""
        tensors = {f"encoder.{name}": value for name, value in self.encoder.state_dict().items()}
        tensors |= {f"head.{name}": value for name, value in self.head.state_dict().items()}
        if self.prediction is not None:
            tensors |= {f"prediction.{name}": value for name, value in self.prediction.state_dict().items()}
        tensors |= {f"optimizer.{name}": value for name, value in self.optimizer.save().items()}
        if self.step:
            tensors |= {f"within_epoch.{name}": value for name, value in self._save_within_epoch().items()}
        schedule = self.plateau.state() if self.plateau is not None else None
        state = TrainerState(epoch=self.epoch, step=self.step, lr=self.optimizer.rates, schedule=schedule)
        return {name: value.contiguous() for name, value in tensors.items()}, state

    def restore(self, tensors: dict[str, Tensor], state: TrainerState) -> None:
        """Set the state to one that `save` returned."""
        names = ("encoder", "head", "prediction", "optimizer", "within_epoch")
        parts: dict[str, dict[str, Tensor]] = {name: {} for name in names}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        self.encoder.load_state_dict(parts["encoder"])
        self.head.load_state_dict(parts["head"])
        if self.prediction is not None:
            self.prediction.load_state_dict(parts["prediction"])
        self.optimizer.restore(parts["optimizer"])
        self.optimizer.rates = state.lr
        if self.plateau is not None:
            self.plateau = Plateau.of(state.schedule or {})
        self.epoch, self.step, self._restored = state.epoch, state.step, parts["within_epoch"]

    def _save_within_epoch(self) -> dict[str, Tensor]:
        """Return what the rest of an epoch depends on: the sums of its losses, and the states of the generators."""
        found = {"sums": self._sums, "generator": self._generator.get_state(), "global": torch.get_rng_state()}
        if self.device.type == "cuda":
            found["cuda"] = torch.cuda.get_rng_state(self.device)
        return found

    def _restore_within_epoch(self) -> None:
        """Set what `_save_within_epoch` returned."""
        self._sums = self._restored["sums"].to(self.device)
        self._generator.set_state(self._restored["generator"])
        torch.set_rng_state(self._restored["global"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(self._restored["cuda"], self.device)

    def _seed_generators(self, *purpose: str | int) -> torch.Generator:
        """Seed torch's global generators with (seed, purpose), and return a new generator seeded so too."""
        draws = stream(self.seed, "encoder", *purpose)
        torch.manual_seed(int(draws.integers(2**63)))
        return torch.Generator(self.device).manual_seed(int(draws.integers(2**63)))


def choose_precision(precision: str, device: torch.device) -> str:
    """Return the precision to compute in: ``auto`` is resolved for the device, others are returned unchanged."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    # Older versions of torch lack the function; processors without the instructions emulate them, many times slower.
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"
