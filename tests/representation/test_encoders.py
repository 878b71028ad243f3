"""Encoders of every kind: shapes, what they are sure to compute, saving, and files that are not what they should be."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import HubServer
from safetensors.torch import load_file, save_file
from samples import ARCHITECTURES
from torch import Tensor

from representation.encoders.attention import Block, attend, projection_head
from representation.encoders.encoder import Encoder
from representation.recipes import Attention, FeedForward, Head, NeuronSet
from zootools.architectures import Schema, build_schema
from zootools.errors import DamagedZooError, SpecError, ZooNotFoundError

SMALL: dict[str, Any] = {"kind": "attention", "latent": 6, "width": 8, "heads": 2, "blocks": 2, "hidden": 12}
KINDS = {
    "AttW": Attention(**SMALL, tokens="weight", compression_token=False),
    "AttW+t": Attention(**SMALL, tokens="weight"),
    "AttN": Attention(**SMALL, compression_token=False),
    "AttN+t": Attention(**SMALL),
    "AttN+linear": Attention(**SMALL, standardise="layer", skip="linear"),
    "FF": FeedForward(kind="feed_forward", latent=6),
    "set": NeuronSet(kind="set", latent=6, width=8, hidden=12),
}


@pytest.fixture
def schema() -> Schema:
    return build_schema(ARCHITECTURES["mlp_deep"], (1, 4, 4), 4)


def make(schema: Schema, kind: str, seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    return Encoder.build(schema, KINDS[kind])


def networks(schema: Schema, count: int = 20) -> Tensor:
    return torch.randn(count, schema.size, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=KINDS)
def encoder(request: pytest.FixtureRequest, schema: Schema) -> Encoder:
    return make(schema, request.param)


def test_representations_and_reconstructions_have_their_shapes(encoder: Encoder, schema: Schema) -> None:
    weights = networks(schema)
    z = encoder.embed(weights)
    assert z.shape == (20, 6)
    assert z.abs().max() < 1
    assert encoder.reconstruct(weights).shape == weights.shape
    torch.testing.assert_close(encoder.eval().decode(z), encoder.reconstruct(weights))
    assert encoder.embed(weights[:0]).shape == (0, 6)


def test_embedding_does_not_depend_on_dropout_batches_or_mode(
    encoder: Encoder, schema: Schema, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = networks(schema)
    encoder.train()
    whole = encoder.embed(weights)
    assert encoder.training
    assert torch.equal(encoder.embed(weights), whole)
    monkeypatch.setattr("representation.encoders.encoder.VALUES_AT_ONCE", 1)
    torch.testing.assert_close(encoder.embed(weights), whole, rtol=1e-5, atol=1e-6)
    assert not whole.requires_grad


def test_every_weight_reaches_the_representation_and_every_parameter_the_loss(encoder: Encoder, schema: Schema) -> None:
    weights = networks(schema).requires_grad_()
    encoder.eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # some layers begin at zero
    encoder.decode(encoder(weights)).square().sum().backward()
    assert weights.grad is not None
    assert (weights.grad != 0).any(dim=0).all()
    unused = [name for name, p in encoder.named_parameters() if p.grad is None or not (p.grad != 0).any()]
    assert unused == []


def test_asking_for_the_first_tokens_only_changes_nothing_about_them() -> None:
    torch.manual_seed(0)
    block, x = Block(KINDS["AttN+t"]).eval(), torch.randn(3, 7, 8)
    torch.testing.assert_close(block(x, queries=1), block(x)[:, :1])
    torch.testing.assert_close(block(x, queries=7), block(x))


def test_attention_is_the_formula() -> None:
    """One block against softmax(q k / sqrt(d)) v written out, with norm before and residual around."""
    torch.manual_seed(0)
    block, x = Block(Attention(**SMALL)).double().eval(), torch.randn(2, 5, 8, dtype=torch.float64)

    def norm(y: Tensor) -> Tensor:
        return (y - y.mean(-1, keepdim=True)) / (y.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()

    q, k, v = block.query_key_value(norm(x)).chunk(3, dim=-1)
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        scores = q[..., part] @ k[..., part].transpose(1, 2) / 2.0
        heads.append(scores.softmax(dim=-1) @ v[..., part])
    y = x + block.after_attention(torch.cat(heads, dim=-1))
    expected = y + block.after_hidden(torch.relu(block.hidden(norm(y))))
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize(("dtype", "dropout", "tolerance"), [(torch.float32, 1e-7, 1e-5), (torch.bfloat16, 0.0, 3e-2)])
def test_every_way_of_attending_computes_the_same(dtype: torch.dtype, dropout: float, tolerance: float) -> None:
    query, key, value = torch.randn(3, 4, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    expected = attend(query, key, value, dropout=0.0)
    found = attend(query.to(dtype), key.to(dtype), value.to(dtype), dropout)
    torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance)


def test_the_papers_encoder_has_as_many_parameters_as_its_code() -> None:
    """1.08 million and 1.18 million for TETRIS-SEED, 8.87 and 35.2 for MNIST-SEED."""
    found = {}
    for name, shape, classes, settings in (
        ("mlp", (1, 4, 4), 4, Attention(kind="attention", latent=50, width=256, heads=4, blocks=2, hidden=512)),
        (
            "cnn_small",
            (1, 28, 28),
            10,
            Attention(kind="attention", latent=700, width=800, heads=4, blocks=2, hidden=900),
        ),
    ):
        with torch.device("meta"):
            encoder = Encoder.build(build_schema(ARCHITECTURES[name], shape, classes), settings)
        found[name] = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (encoder.encoder, encoder.decoder)]
    assert found["mlp"] == pytest.approx([1.08, 1.18], abs=0.01)
    assert found["cnn_small"] == pytest.approx([8.87, 35.2], abs=0.1)


def test_the_head_ends_in_a_batch_norm() -> None:
    head = projection_head(6, Head(layers=2, hidden=5, outputs=3))
    out = head(torch.randn(100, 6, generator=torch.Generator().manual_seed(0)))
    assert [type(module).__name__ for module in head] == ["Linear", "BatchNorm1d", "ReLU"] * 2 + [
        "Linear",
        "BatchNorm1d",
    ]
    torch.testing.assert_close(out.mean(0), torch.zeros(3), atol=1e-5, rtol=0)


# --- files ----------------------------------------------------------------------------------------------------


def test_a_restored_encoder_gives_the_same_representations(encoder: Encoder, schema: Schema, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path)
    restored, weights = Encoder.from_pretrained(str(tmp_path)), networks(schema)
    assert torch.equal(restored.embed(weights), encoder.embed(weights))
    assert torch.equal(restored.reconstruct(weights), encoder.reconstruct(weights))
    assert restored.schema == schema
    assert restored.architecture == encoder.architecture
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    assert f"float32 [n, {schema.size}] -> [n, 6]" in (tmp_path / "README.md").read_text()


def test_to_load_and_use_an_encoder_needs_no_compiler(schema: Schema, tmp_path: Path) -> None:
    """To import torch's compiler takes a second of a processor."""
    for kind in KINDS:
        make(schema, kind).save_pretrained(tmp_path / kind)
    script = """
import sys
from pathlib import Path
import torch
from representation.encoders import Encoder
for folder in Path(sys.argv[1]).iterdir():
    encoder = Encoder.from_pretrained(folder)
    encoder.reconstruct(torch.zeros(2, encoder.schema.size))
    assert "torch._dynamo" not in sys.modules, folder.name
"""
    subprocess.run([sys.executable, "-c", script, tmp_path], check=True)


@pytest.mark.parametrize("damage", ["missing tensor", "extra tensor", "other shape", "other type", "cut", "a pickle"])
def test_weights_that_are_not_what_the_configuration_describes_are_refused(
    schema: Schema, tmp_path: Path, damage: str
) -> None:
    make(schema, "AttN+t").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    name = "encoder.bottleneck.weight"
    match damage:
        case "missing tensor":
            del tensors[name]
        case "extra tensor":
            tensors["more"] = torch.zeros(1)
        case "other shape":
            tensors[name] = tensors[name][:, 1:].contiguous()
        case "other type":
            tensors = {key: tensor.half() for key, tensor in tensors.items()}
    save_file(tensors, path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    if damage == "a pickle":
        path.write_bytes(b"\x80\x04\x95")
    with pytest.raises(DamagedZooError, match=r"model\.safetensors"):
        Encoder.from_pretrained(str(tmp_path))


def test_nothing_but_safetensors_is_loaded(schema: Schema, tmp_path: Path) -> None:
    make(schema, "AttN+t").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ZooNotFoundError, match=r"there is no model\.safetensors"):
        Encoder.from_pretrained(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": {"kind": "attention"}}, "architecture of an encoder"),
        ({"architecture": SMALL | {"width": 10**9}}, "architecture of an encoder"),
        ({"architecture": SMALL | {"code": "import os"}}, "architecture of an encoder"),
        # 65,536 wide, 100 blocks deep: terabytes, if anything were allocated before the file is looked at.
        ({"architecture": SMALL | {"width": 65_536, "hidden": 65_536, "blocks": 100}}, "model.safetensors"),
        ({"schema": {"name": "x", "input_shape": [1, 4, 4], "layers": []}}, "layer schema"),
    ],
)
def test_a_hostile_configuration_is_refused(schema: Schema, tmp_path: Path, change: Any, message: str) -> None:
    make(schema, "AttN+t").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DamagedZooError, match=message):
        Encoder.from_pretrained(str(tmp_path))


@pytest.mark.parametrize("text", ["{}", "[]", "not JSON", "\xff", "[" * 100_000, "{}" + " " * (1 << 20)])
def test_a_file_that_is_not_a_configuration_is_refused(schema: Schema, tmp_path: Path, text: str) -> None:
    make(schema, "AttN+t").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DamagedZooError, match=r"config\.json: not the configuration of an encoder"):
        Encoder.from_pretrained(str(tmp_path))


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_an_encoder_whose_weights_are_not_finite_is_refused_by_tensor(
    schema: Schema, tmp_path: Path, value: float
) -> None:
    make(schema, "FF").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[3]
    tensors[name].view(-1)[0] = value
    save_file(tensors, path)
    with pytest.raises(DamagedZooError, match=rf"model\.safetensors: 1 tensors hold NaN or infinity, '{name}'"):
        Encoder.from_pretrained(str(tmp_path))


def test_a_folder_without_an_encoder_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ZooNotFoundError, match=r"holds no encoder \(there is no config\.json\)"):
        Encoder.from_pretrained(str(tmp_path))
    with pytest.raises(ZooNotFoundError, match="neither a folder nor the name of a repository"):
        Encoder.from_pretrained(str(tmp_path / "nothing"))


def test_an_encoder_goes_to_the_hub_and_comes_back(
    schema: Schema, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    encoder, weights = make(schema, "AttN+t"), networks(schema)
    encoder.push_to_hub("group/encoder", private=True)
    repository = server.repos["group/encoder"]
    files = repository.commits[repository.refs["main"][-1]]
    assert set(files) == {".gitattributes", "config.json", "model.safetensors", "README.md"}
    assert torch.equal(Encoder.from_pretrained("group/encoder").embed(weights), encoder.embed(weights))
    with pytest.raises(ZooNotFoundError, match=r"group/other: holds no encoder \(there is no config\.json\)"):
        Encoder.from_pretrained("group/other")


def test_weights_of_other_networks_are_refused(schema: Schema) -> None:
    encoder = make(schema, "AttN+t")
    with pytest.raises(SpecError, match=rf"weights \[n, {schema.size}\] of mlp, found a tensor \[2, 100\]"):
        encoder.embed(torch.zeros(2, 100))
    weights = networks(schema)
    weights[3, 0], weights[5, 1] = float("nan"), float("inf")
    with pytest.raises(SpecError, match="2 of 20 networks have weights that are NaN or infinite"):
        encoder.embed(weights)
