"""Encoders from weights to a representation z with their decoders, saved and loaded (paper, section 3).

>>> encoder = Encoder.from_pretrained("folder or organisation/name")
>>> z = encoder.embed(zoo.weights())
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin, constants, hf_hub_download
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from representation.encoders.attention import AttentionDecoder, AttentionEncoder, feed_forward, feed_forward_sizes
from representation.encoders.graph import NeuronGraph
from representation.encoders.neuron_set import NeuronSetDecoder, NeuronSetEncoder
from representation.encoders.standard import LinearPaths, Standardiser
from representation.encoders.tokens import Tokenizer
from representation.networks import Networks, in_parts
from representation.recipes import Attention, FeedForward, NeuronSet
from zootools.architectures import Schema
from zootools.errors import DamagedZooError, HubError, SpecError, StorageError, ZooNotFoundError, nearest_path
from zootools.filesystem.files import exists, write_durably
from zootools.hub.calls import retried
from zootools.hub.locate import looks_like_a_path
from zootools.object_store.urls import folder_of

Architecture = Attention | FeedForward | NeuronSet
_ARCHITECTURE: TypeAdapter[Architecture] = TypeAdapter(Architecture)
VALUES_AT_ONCE = 1 << 24
"""Most activations per layer in `Encoder.embed`; bounds the memory, and does not change the result."""
MAX_CONFIG = 1 << 20
"""Largest config.json that is read, in bytes."""

CARD = """---
{{ card_data }}
---

An encoder of the weights of neural networks, with its decoder: {{ parameters }} weights to a representation of length
{{ latent }}, and back. `config.json` holds the layer schema of the networks it takes ({{ network }}) and its own
architecture. Trained by zootools.

```python
from representation.encoders import Encoder

encoder = Encoder.from_pretrained("this repository")
z = encoder.embed(weights)  # float32 [n, {{ parameters }}] -> [n, {{ latent }}]
```
"""


class Encoder(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="zootools",
    tags=["model zoo", "weight space learning"],
    model_card_template=CARD,
):
    """An encoder with its decoder: weights of one layer schema to z, and back.

    Saved as config.json (schema and architecture) and model.safetensors; `from_pretrained` reads no other file.
    """

    def __init__(self, schema: dict[str, Any], architecture: dict[str, Any]) -> None:
        """Args are plain values: a `Schema.to_json`, and the ``encoder`` section of a recipe."""
        super().__init__()
        self.schema = Schema.from_json(schema)
        try:
            self.architecture: Architecture = _ARCHITECTURE.validate_python(architecture)
        except ValidationError as error:
            raise DamagedZooError(f"architecture of an encoder: {error}") from error
        settings, size = self.architecture, self.schema.size
        self.encoder: nn.Module
        self.decoder: nn.Module
        if isinstance(settings, Attention):
            self.encoder = AttentionEncoder(self.schema, settings)
            self.decoder = AttentionDecoder(self.schema, settings)
        elif isinstance(settings, NeuronSet):
            self.encoder = NeuronSetEncoder(self.schema, settings)
            self.decoder = NeuronSetDecoder(self.schema, settings)
        else:
            sizes = feed_forward_sizes(size, settings)
            self.encoder = feed_forward(sizes, settings.dropout)
            self.decoder = feed_forward(sizes[::-1], settings.dropout)
        self.standardiser = Standardiser(size) if settings.standardises else None
        self.paths = LinearPaths(size, settings.length, settings.coded) if settings.coded else None

    @classmethod
    def build(cls, schema: Schema, architecture: Architecture) -> Self:
        """Return an untrained encoder for the models of one schema; see `start`."""
        return cls(schema=schema.to_json(), architecture=architecture.sized(schema.size).model_dump(mode="json"))

    def start(self, weights: Networks, code: tuple[Tensor, Tensor] | None) -> None:
        """Set what training begins with that depends on training weights ``[n, N]``: constants, linear maps.

        Args: ``code`` is the mean ``[N]`` and the components ``[N, L]`` of the linear code that the linear maps begin
        with; None for a random start.
        """
        if self.standardiser is not None:
            self.standardiser.fit_layers(weights, self.schema)
        if isinstance(self.encoder, NeuronSetEncoder):
            self.encoder.statistics.fit(self.standardised(rows) for rows in in_parts(weights))
        if self.paths is not None and code is not None:
            mean, components = (part.to(weights.device) for part in code)
            self.paths.start(mean, components, weights, self.standardiser)

    def standardised(self, weights: Tensor) -> Tensor:
        """Return the weights ``[n, N]`` as the encoder's layers see them."""
        return weights if self.standardiser is None else self.standardiser(weights)

    def forward(self, weights: Tensor) -> Tensor:
        """Return z ``[n, L]`` of flat weights ``[n, N]``."""
        inputs = self.standardised(weights)
        z = self.encoder(inputs)
        if self.paths is not None:
            z = self.paths.encode(z, inputs)
        return torch.tanh(z)

    def decode(self, z: Tensor) -> Tensor:
        """Return flat weights ``[n, N]`` from z ``[n, L]``."""
        weights = self.decoder(z)
        if self.paths is not None:
            weights = weights + self.paths.decode(z)
        return weights if self.standardiser is None else self.standardiser.undo(weights)

    def embed(self, weights: Networks) -> Tensor:
        """Return the representations, float32 ``[n, L]`` on the CPU, of flat weights ``[n, N]``.

        Computed in evaluation mode, on the encoder's device, in batches. Raises SpecError for weights of another
        length, or that are not finite.
        """
        return self._in_batches(self, weights)

    def reconstruct(self, weights: Tensor) -> Tensor:
        """Return the reconstructions, float32 ``[n, N]`` on the CPU, of flat weights ``[n, N]``; see `embed`."""
        return self._in_batches(lambda batch: self.decode(self(batch)), weights)

    @torch.no_grad()
    def _in_batches(self, function: Callable[[Tensor], Tensor], weights: Networks) -> Tensor:
        if len(weights.shape) != 2 or weights.shape[1] != self.schema.size:
            expected = f"weights [n, {self.schema.size}] of {self.schema.name}"
            raise SpecError(f"this encoder takes {expected}, found a tensor {list(weights.shape)}")
        if bad := sum(int((~rows.isfinite()).any(dim=1).sum()) for rows in in_parts(weights)):
            raise SpecError(f"{bad} of {len(weights)} networks have weights that are NaN or infinite")
        device, training = next(self.parameters()).device, self.training
        batch_size = max(1, VALUES_AT_ONCE // largest_layer(self.schema, self.architecture))
        self.eval()
        try:
            batches = [function(batch.float().to(device)).float().cpu() for batch in weights.split(batch_size)]
        finally:
            self.train(training)
        return torch.cat(batches)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Return the README.md that `save_pretrained` and `push_to_hub` write."""
        facts = {"parameters": self.schema.size, "latent": self.architecture.length, "network": self.schema.name}
        return super().generate_model_card(*args, **facts, **kwargs)

    def _save_pretrained(self, save_directory: Path) -> None:
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        write_durably(save_directory / constants.SAFETENSORS_SINGLE_FILE, save(tensors))

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, revision: str | None = None, **download: Any
    ) -> Self:
        """Load an encoder from a folder, or from a repository on the Hub.

        Replaces the method of the mixin, which accepts missing weights and falls back to a pickle: this one reads only
        config.json and model.safetensors, which must be complete and match each other.

        Args:
            pretrained_model_name_or_path: the folder, or ``organisation/name``.
            revision: branch, tag or commit of the repository.
            download: further arguments of ``hf_hub_download``, such as ``token`` and ``cache_dir``.

        Raises ZooNotFoundError when there is no encoder, DamagedZooError when its files are not those of one.
        """
        name = str(pretrained_model_name_or_path)

        config, path = (
            _local_file(name, file, revision, download)
            for file in (constants.CONFIG_NAME, constants.SAFETENSORS_SINGLE_FILE)
        )
        try:
            values = json.loads(config.read_bytes() if config.stat().st_size <= MAX_CONFIG else b"")
            arguments = {"schema": values["schema"], "architecture": values["architecture"]}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DamagedZooError(f"{config}: not the configuration of an encoder ({error!r})") from error
        # Allocate nothing before the file proves to have the tensors that config.json describes.
        with torch.device("meta"):
            encoder = cls(**arguments)
        try:
            tensors = load_file(path)
            encoder.load_state_dict(tensors, assign=True)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise DamagedZooError(f"{path}: not the weights that config.json describes ({error})") from error
        if strange := {str(tensor.dtype) for tensor in tensors.values()} - {"torch.float32"}:
            raise DamagedZooError(f"{path}: expected float32 weights, found {', '.join(sorted(strange))}")
        if bad := [key for key, tensor in tensors.items() if not tensor.isfinite().all()]:
            raise DamagedZooError(f"{path}: {len(bad)} tensors hold NaN or infinity, {bad[0]!r} among them")
        return encoder.eval()


def largest_layer(schema: Schema, settings: Architecture) -> int:
    """Return about how many values of one network the largest layer of an encoder has."""
    if isinstance(settings, Attention):
        return Tokenizer(schema, settings.tokens).length * max(settings.hidden, 3 * settings.width)
    if isinstance(settings, NeuronSet):
        return NeuronGraph(schema).largest_layer(settings.hidden)
    return schema.size


def _local_file(name: str, file: str, revision: str | None, download: dict[str, Any]) -> Path:
    """Return the path of an encoder's file, in the folder ``name`` or downloaded from the repository ``name``.

    Raises as `Encoder.from_pretrained`.
    """
    missing = ZooNotFoundError(f"{name}: holds no encoder (there is no {file})")
    folder = folder_of(name)
    if folder is not None and exists(folder):
        if not (folder / file).is_file():
            raise missing
        return folder / file
    near = nearest_path(folder) if folder is not None else ""
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise ZooNotFoundError(f"{name}: neither a folder nor the name of a repository{near}") from None
    if folder is not None and revision is None and looks_like_a_path(folder):
        raise ZooNotFoundError(f"{name}: there is no such folder{near}")
    try:
        return Path(retried(lambda: hf_hub_download(name, file, revision=revision, **download), name, first=True))
    except ZooNotFoundError as error:
        raise missing from error
    except (HubError, StorageError) as error:
        raise type(error)(f"{error} (there is no folder of this name either)") from error
