"""Encoders from weights to a representation z, and decoders back (paper, section 3).

>>> encoder = Encoder.from_pretrained("folder or organisation/name")
>>> z = encoder.embed(zoo.weights())
"""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin, constants, hf_hub_download
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from representation.recipes import Attention, FeedForward, Head
from representation.tokens import Tokenizer
from zootools.architectures import Schema
from zootools.errors import DamagedZooError, HubError, SpecError, StorageError, ZooNotFoundError, nearest_path
from zootools.files import exists, write_durably
from zootools.hub.calls import retried
from zootools.hub.locate import reads_like_a_path
from zootools.objects import folder_of

VALUES_AT_ONCE = 1 << 24
"""How many activations `Encoder.embed` keeps per layer: it bounds the memory, not the result."""


def attend(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    """Return softmax(q k / sqrt(d)) v of tensors ``[n, heads, tokens, d]``, with dropout of the softmax."""
    if query.is_cpu and (dropout or query.dtype == torch.bfloat16):
        # For short sequences torch's kernels are up to ten times slower here than the operations themselves.
        scores = query @ key.transpose(2, 3) * query.shape[3] ** -0.5
        return F.dropout(scores.softmax(dim=3), dropout) @ value
    return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)


class Block(nn.Module):
    """Pre-norm transformer block: multi-head self-attention, then Linear, ReLU, Linear."""

    def __init__(self, settings: Attention) -> None:
        super().__init__()
        width, self.heads = settings.width, settings.heads
        self.attention_dropout = settings.attention_dropout
        self.dropout = nn.Dropout(settings.dropout)
        self.before_attention = nn.LayerNorm(width, eps=1e-6)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.after_attention = nn.Linear(width, width)
        self.before_hidden = nn.LayerNorm(width, eps=1e-6)
        self.hidden = nn.Linear(width, settings.hidden)
        self.after_hidden = nn.Linear(settings.hidden, width)

    def forward(self, x: Tensor, queries: int | None = None) -> Tensor:
        """Return the outputs ``[n, queries, width]`` of the first ``queries`` tokens (all by default) of ``x``.

        Every token is attended to; what is left out is only what nobody reads, so the outputs are the same.
        """
        normed = self.before_attention(x)
        if queries is None:
            query, key, value = self._heads(self.query_key_value(normed), 3)
        else:
            x, width = x[:, :queries], x.shape[2]
            weight, bias = self.query_key_value.weight, self.query_key_value.bias
            (query,) = self._heads(F.linear(normed[:, :queries], weight[:width], bias[:width]), 1)
            key, value = self._heads(F.linear(normed, weight[width:], bias[width:]), 2)
        attended = attend(query, key, value, self.attention_dropout if self.training else 0.0)
        x = x + self.dropout(self.after_attention(attended.transpose(1, 2).flatten(2)))
        hidden = self.dropout(F.relu(self.hidden(self.before_hidden(x))))
        return x + self.dropout(self.after_hidden(hidden))

    def _heads(self, projected: Tensor, parts: int) -> tuple[Tensor, ...]:
        """Cut ``[n, tokens, parts * width]`` into so many ``[n, heads, tokens, width / heads]``."""
        return projected.unflatten(2, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()


class AttentionEncoder(nn.Module):
    """Tokens, learned positions, blocks, and a bottleneck of Linear and Tanh: ``[n, N]`` to z ``[n, L]``."""

    def __init__(self, schema: Schema, settings: Attention) -> None:
        super().__init__()
        self.tokenizer = Tokenizer(schema, settings.tokens)
        self.embeddings = nn.ModuleList(nn.Linear(width, settings.width) for _, width in self.tokenizer.shapes)
        self.compression_token = _positions(1, settings) if settings.compression_token else None
        length = self.tokenizer.length + settings.compression_token
        self.positions = _positions(length, settings)
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.blocks))
        self.bottleneck = nn.Linear(settings.width * (1 if settings.compression_token else length), settings.latent)

    def forward(self, weights: Tensor) -> Tensor:
        groups = self.tokenizer.split(weights)
        x = torch.cat([embed(group) for embed, group in zip(self.embeddings, groups, strict=True)], dim=1)
        if self.compression_token is not None:
            x = torch.cat([self.compression_token.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
        x = x + self.positions
        for block in self.blocks[:-1]:
            x = block(x)
        x = self.blocks[-1](x, queries=None if self.compression_token is None else 1)
        return torch.tanh(self.bottleneck(x.flatten(1)))


class AttentionDecoder(nn.Module):
    """The mirror image: z to a sequence, positions, blocks, and one Linear per group of tokens to the weights."""

    def __init__(self, schema: Schema, settings: Attention) -> None:
        super().__init__()
        self.tokenizer = Tokenizer(schema, settings.tokens)
        self.entrance = nn.Linear(settings.latent, self.tokenizer.length * settings.width)
        self.positions = _positions(self.tokenizer.length, settings)
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.blocks))
        self.exits = nn.ModuleList(nn.Linear(settings.width, width) for _, width in self.tokenizer.shapes)

    def forward(self, z: Tensor) -> Tensor:
        x = self.entrance(z).unflatten(1, self.positions.shape) + self.positions
        for block in self.blocks:
            x = block(x)
        groups = x.split([count for count, _ in self.tokenizer.shapes], dim=1)
        return self.tokenizer.join([leave(group) for leave, group in zip(self.exits, groups, strict=True)])


def _positions(count: int, settings: Attention) -> nn.Parameter:
    return nn.Parameter(torch.randn(count, settings.width) * settings.positions_std)


def feed_forward_sizes(size: int, settings: FeedForward) -> list[int]:
    """Return the widths of the layers from a number of weights to z, in equal steps."""
    return list(np.linspace(size, settings.latent, settings.layers + 1).round().astype(int).tolist())


def feed_forward(sizes: list[int], dropout: float) -> nn.Sequential:
    """Return Linear, ReLU, dropout for each step from one size to the next; the last step is Linear only."""
    steps = [
        module
        for inputs, outputs in itertools.pairwise(sizes)
        for module in (nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(dropout))
    ]
    return nn.Sequential(*steps[:-2])


def projection_head(latent: int, settings: Head) -> nn.Sequential:
    """Return the head of the contrastive loss: z to the vectors that are compared."""
    layers: list[nn.Module] = []
    for layer in range(settings.layers):
        inputs = latent if layer == 0 else settings.hidden
        layers += [nn.Linear(inputs, settings.hidden), nn.BatchNorm1d(settings.hidden), nn.ReLU()]
    last = nn.Linear(settings.hidden if settings.layers else latent, settings.outputs)
    for linear in [*layers[::3], last]:
        assert isinstance(linear, nn.Linear)
        nn.init.kaiming_normal_(linear.weight)
        nn.init.constant_(linear.bias, 0.01)
    return nn.Sequential(*layers, last, nn.BatchNorm1d(settings.outputs))


MAX_CONFIG = 1 << 20
"""Bytes of a config.json, beyond which it is not read."""

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

    Saved as config.json (schema and architecture) and model.safetensors; `from_pretrained` takes nothing else.
    """

    def __init__(self, schema: dict[str, Any], architecture: dict[str, Any]) -> None:
        """Take plain values: a `Schema.to_json`, and the ``encoder`` section of a recipe."""
        super().__init__()
        self.schema = Schema.from_json(schema)
        try:
            self.architecture: Attention | FeedForward = _ARCHITECTURE.validate_python(architecture)
        except ValidationError as error:
            raise DamagedZooError(f"architecture of an encoder: {error}") from error
        settings, size = self.architecture, self.schema.size
        self.encoder: nn.Module
        self.decoder: nn.Module
        if isinstance(settings, Attention):
            self.encoder = AttentionEncoder(self.schema, settings)
            self.decoder = AttentionDecoder(self.schema, settings)
        else:
            sizes = feed_forward_sizes(size, settings)
            self.encoder = feed_forward(sizes, settings.dropout).append(nn.Tanh())
            self.decoder = feed_forward(sizes[::-1], settings.dropout)

    @classmethod
    def build(cls, schema: Schema, architecture: Attention | FeedForward) -> Self:
        """Return an untrained encoder for the models of one schema."""
        return cls(schema=schema.to_json(), architecture=architecture.model_dump(mode="json"))

    def forward(self, weights: Tensor) -> Tensor:
        """Return z ``[n, L]`` of flat weights ``[n, N]``."""
        return self.encoder(weights)

    def decode(self, z: Tensor) -> Tensor:
        """Return flat weights ``[n, N]`` from z ``[n, L]``."""
        return self.decoder(z)

    def embed(self, weights: Tensor) -> Tensor:
        """Return the representations, float32 ``[n, L]`` on the CPU, of flat weights ``[n, N]``.

        They are computed in evaluation mode, on the encoder's device, in batches. Raises SpecError for weights
        of another length, or that are not finite.
        """
        return self._in_batches(self.encoder, weights)

    def reconstruct(self, weights: Tensor) -> Tensor:
        """Return what the decoder makes of the representations: float32 ``[n, N]`` on the CPU; see `embed`."""
        return self._in_batches(lambda batch: self.decoder(self.encoder(batch)), weights)

    @torch.no_grad()
    def _in_batches(self, function: Callable[[Tensor], Tensor], weights: Tensor) -> Tensor:
        if weights.dim() != 2 or weights.shape[1] != self.schema.size:
            expected = f"weights [n, {self.schema.size}] of {self.schema.name}"
            raise SpecError(f"this encoder takes {expected}, found a tensor {list(weights.shape)}")
        if not torch.isfinite(weights).all():
            bad = int((~torch.isfinite(weights)).any(dim=1).sum())
            raise SpecError(f"{bad} of {len(weights)} networks have weights that are NaN or infinite")
        values, device = self.schema.size, next(self.parameters()).device
        if isinstance(self.architecture, Attention):
            values = Tokenizer(self.schema, self.architecture.tokens).length * max(
                self.architecture.hidden, 3 * self.architecture.width
            )
        batch_size, training = max(1, VALUES_AT_ONCE // values), self.training
        self.eval()
        try:
            batches = [function(batch.float().to(device)).float().cpu() for batch in weights.split(batch_size)]
        finally:
            self.train(training)
        return torch.cat(batches)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Return the README.md that `save_pretrained` and `push_to_hub` write."""
        facts = {"parameters": self.schema.size, "latent": self.architecture.latent, "network": self.schema.name}
        return super().generate_model_card(*args, **facts, **kwargs)

    def _save_pretrained(self, save_directory: Path) -> None:
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        write_durably(save_directory / constants.SAFETENSORS_SINGLE_FILE, save(tensors))

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, revision: str | None = None, **download: Any
    ) -> Self:
        """Load an encoder from a folder, or from a repository on the Hub.

        In the place of the mixin's way, which lets weights be missing and falls back to a pickle: nothing but
        config.json and model.safetensors is read, and they must be complete and fit each other.

        Args:
            pretrained_model_name_or_path: the folder, or ``organisation/name``.
            revision: of the repository.
            download: further arguments of ``hf_hub_download``, such as ``token`` and ``cache_dir``.

        Raises ZooNotFoundError when there is no encoder, DamagedZooError when it is not what was saved.
        """
        name = str(pretrained_model_name_or_path)

        def find(file: str) -> Path:
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
            if folder is not None and revision is None and reads_like_a_path(folder):
                raise ZooNotFoundError(f"{name}: there is no such folder{near}")
            try:
                path = retried(lambda: hf_hub_download(name, file, revision=revision, **download), name, first=True)
                return Path(path)
            except ZooNotFoundError as error:
                raise missing from error
            except (HubError, StorageError) as error:
                raise type(error)(f"{error} (there is no folder of this name either)") from error

        config, path = find(constants.CONFIG_NAME), find(constants.SAFETENSORS_SINGLE_FILE)
        try:
            values = json.loads(config.read_bytes() if config.stat().st_size <= MAX_CONFIG else b"")
            arguments = {"schema": values["schema"], "architecture": values["architecture"]}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DamagedZooError(f"{config}: is no configuration of an encoder ({error!r})") from error
        # Without memory until the file has shown that it holds what config.json promises.
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


_ARCHITECTURE: TypeAdapter[Attention | FeedForward] = TypeAdapter(Attention | FeedForward)
