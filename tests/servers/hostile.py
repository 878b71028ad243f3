"""Zoos as an attacker would make them: hashes and sizes all right, contents not what a builder writes."""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zootools import open_zoo
from zootools.errors import DamagedZooError
from zootools.hashing import pretty_json
from zootools.spec import load_spec
from zootools.storage.card import render_card
from zootools.storage.hashed_json import add_hash
from zootools.storage.manifest import Manifest
from zootools.verify import faults

SHARD = "checkpoints/stack-00000/epoch-0001.safetensors"
TABLE = "metadata/train-00000-of-00001.parquet"


def rewrite_manifest(zoo: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change zoo.json, seal it again, and make the card that belongs to it, if there can be one."""
    manifest = json.loads((zoo / "zoo.json").read_bytes())
    change(manifest)
    manifest = add_hash(manifest)
    (zoo / "zoo.json").write_bytes(pretty_json(manifest))
    with contextlib.suppress(Exception):
        (zoo / "README.md").write_text(render_card(Manifest.model_validate(manifest), load_spec(zoo / "spec.yaml")))


def replace_file(zoo: Path, name: str, data: bytes) -> None:
    """Give a file other contents, and the manifest their size and hash."""
    (zoo / name).parent.mkdir(parents=True, exist_ok=True)
    (zoo / name).write_bytes(data)
    info = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    rewrite_manifest(zoo, lambda manifest: manifest["files"].update({name: info}))


def copy_zoo(zoo: Path, out: Path) -> Path:
    """Return a copy of a zoo at ``out``, in the place of what is there."""
    if out.exists():
        shutil.rmtree(out)
    shutil.copytree(zoo, out)
    return out


def read_everything(zoo: Path) -> None:
    """Open, read and verify a zoo as a user would; raise the first refusal."""
    opened = open_zoo(zoo, include_diverged=True)
    opened.weights()
    opened.state_dict(opened.models[0], 0)
    found = list(faults(zoo))
    if found:
        raise DamagedZooError(str(found[0]))
