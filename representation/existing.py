"""An encoder that exists already, to be scored on a zoo instead of a trained one."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from representation.dataset import check_same_layers
from representation.encoders.encoder import Encoder
from representation.evaluation.scoring import Method
from representation.recipes import Recipe, load_recipe
from zootools.filesystem.files import exists
from zootools.hashing import canonical_json
from zootools.hub.names import hub_setting
from zootools.object_store.urls import folder_of
from zootools.zoo import Zoo
from zootools.zoo_name import parse_name

RECIPE = "recipe.yaml"
"""The file in the folder of a training with the recipe of its encoder."""


@dataclass(frozen=True)
class ExistingEncoder:
    """An encoder, and how to name it and score it."""

    encoder: Encoder
    name: str
    """The folder or name by which it was given; ``encoder`` for one in memory."""
    recipe_source: str | None
    """The recipe that it was trained by: a bundled one, or a file. None if it is not known."""

    @classmethod
    def load(cls, given: Encoder | str | Path, recipe: str | None = None) -> "ExistingEncoder":
        """Load an encoder from its folder, or by its name (``ORG/NAME`` or ``ORG/NAME@REVISION``).

        A name is looked for in the hub folder, if $ZOOTOOLS_HUB is one, then on the Hub.

        Args:
            given: the encoder, its folder, or its name.
            recipe: the recipe that it was trained by; by default the one in its folder, if there is one.

        Raises ZooNotFoundError where there is no encoder, DamagedZooError for files that are not those of an encoder.
        """
        if isinstance(given, Encoder):
            return cls(given, "encoder", recipe)
        folder, name, setting = folder_of(given), parse_name(str(given)), hub_setting(None)
        if folder is not None and not exists(folder) and name is not None:
            if not isinstance(setting, Path) or not exists(setting / name.repo_id):
                endpoint = setting if isinstance(setting, str) else None
                found = Encoder.from_pretrained(name.repo_id, revision=name.revision, endpoint=endpoint)
                return cls(found, str(given), recipe)
            folder = setting / name.repo_id
        found = Encoder.from_pretrained(folder if folder is not None else given)
        if recipe is None and folder is not None and (folder / RECIPE).is_file():
            recipe = str(folder / RECIPE)
        return cls(found, str(given), recipe)

    def check(self, zoo: Zoo) -> None:
        """Raise SpecError, with the first difference, unless the encoder was made for the layers of a zoo."""
        check_same_layers(zoo.schema, str(zoo.folder), self.encoder.schema, f"the encoder {self.name}")

    def adapted(self, overrides: Sequence[str]) -> Recipe:
        """Return the recipe to score by, with the network of this encoder.

        Where its recipe is not known, the recipe ``default`` selects the checkpoints. Raises SpecError for a recipe
        that is not valid.
        """
        found = load_recipe(self.recipe_source or "default", overrides)
        return found.model_copy(update={"encoder": self.encoder.architecture})

    def method(self, recipe: Recipe) -> Method:
        """Return the encoder as a method, named after its loss; ``encoder``, without a reconstruction, if unknown."""
        if self.recipe_source is None:
            return Method("encoder", self.encoder.embed)
        return Method.of_encoder(self.encoder, recipe)

    @property
    def notes(self) -> list[str]:
        """A remark if the recipe of the encoder is not known."""
        if self.recipe_source is not None:
            return []
        text = f"no recipe is known (no {RECIPE} beside it, and none was named), so its decoder is not scored"
        return [f"the encoder {self.name}: {text}"]

    @cached_property
    def sha256(self) -> str:
        """Hash of the layers, the architecture and the parameters."""
        config = [self.encoder.schema.to_json(), self.encoder.architecture.model_dump(mode="json")]
        digest = hashlib.sha256(canonical_json(config).encode())
        for name, tensor in sorted(self.encoder.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().data)
        return digest.hexdigest()
