"""The finished zoo: its manifest zoo.json, how it is written, and how a folder is held against it."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from zootools.errors import DamagedZooError, ZooNotFoundError
from zootools.files import pretty_json, sha256_file, write_durably
from zootools.population import canonical_json
from zootools.shards import read_info
from zootools.spec import ZooSpec, load_spec
from zootools.store import FORMAT, Plan, StackRecord, ZooFolder

MAX_BYTES = 64 << 20
UNHASHED = ("README.md", "build.json", "zoo.json")
"""Files that the manifest does not hash: the card is rendered again and compared, build.json may differ."""


def finish_zoo(zoo: ZooFolder, plan: Plan) -> dict[str, Any]:
    """Derive tables and card of a zoo whose stacks are all done, and write zoo.json last."""
    from zootools.card import render_card
    from zootools.tables import SPLITS, accuracy_summary, metadata_table, write_parquet

    records = [zoo.read_record(stack) or StackRecord({}) for stack in range(len(plan.stacks))]
    stopped = {model: info for record in records for model, info in record.stopped.items()}
    models = plan.models()
    shards = [
        (stack, read_info(zoo.path / name)) for stack, record in enumerate(records) for name in sorted(record.shards)
    ]
    table = metadata_table(plan.spec, models, shards, stopped)
    # From here on the old tables of a zoo that has grown are being replaced, so its old manifest must go.
    zoo.manifest.unlink(missing_ok=True)
    for path in [*zoo.path.glob("data/*.parquet"), *zoo.path.glob("metadata/*.parquet")]:
        path.unlink()
    write_durably(zoo.path / "spec.yaml", spec_yaml(plan.spec))
    tables = write_parquet(zoo.path, plan.schema, table)
    files = {name: info for record in records for name, info in record.shards.items()}
    for name in ("spec.yaml", *tables["checkpoints"], *tables["metadata"]):
        path = zoo.path / name
        files[name] = {"size": path.stat().st_size, "sha256": sha256_file(path)}
    fingerprints = list({canonical_json(record.fingerprint): record.fingerprint for record in records}.values())
    counts: Counter[str] = Counter("diverged" if model in stopped else "ok" for model in models)
    splits = Counter(table["split"].to_pylist())
    manifest = {
        "format": FORMAT,
        "name": plan.spec.name,
        "schema": plan.schema.to_json(),
        "classes": plan.schema.classes,
        "images_sha256": plan.images_sha256,
        "counts": {
            "expected": len(models),
            "ok": counts["ok"],
            "diverged": counts["diverged"],
            "failed": 0,
            "missing": 0,
            "checkpoints": table.num_rows,
        },
        "splits": {split: splits[split] for split in SPLITS},
        "test_accuracy": accuracy_summary(table),
        "fingerprints": fingerprints,
        "stacks": [
            {
                "models": ids,
                "epoch": record.epoch,
                "stopped": record.stopped,
                "fingerprint": fingerprints.index(record.fingerprint),
            }
            for ids, record in zip(plan.stacks, records, strict=True)
        ],
        "files": files,
    }
    manifest["sha256"] = own_hash(manifest)
    write_durably(zoo.path / "README.md", render_card(manifest, plan.spec).encode())
    write_durably(zoo.manifest, pretty_json(manifest))
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a finished zoo, checked against its own hash.

    Raises ZooNotFoundError when there is none, DamagedZooError when it is not what was written.
    """
    path = folder / "zoo.json"
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise DamagedZooError(f"{path}: {size} bytes, more than the {MAX_BYTES} that a manifest may have")
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ZooNotFoundError(f"{folder}: holds no finished zoo (there is no zoo.json)") from None
    except (ValueError, RecursionError) as error:
        raise DamagedZooError(f"{path}: is not valid JSON ({error})") from error
    if not isinstance(value, dict) or value.get("sha256") != own_hash(value):
        raise DamagedZooError(f"{path}: its own sha256 does not match its content")
    if value.get("format") != FORMAT:
        raise DamagedZooError(f"{path}: format {value.get('format')!r}; this version of zootools reads {FORMAT}")
    for name in value["files"]:
        _check_name(path, name)
    return value


def stored_spec(folder: Path, manifest: dict[str, Any]) -> ZooSpec:
    """Return the specification of a finished zoo. Raises DamagedZooError when it is not the one that was stored."""
    for fault in _file_faults(folder, {"spec.yaml": manifest["files"]["spec.yaml"]}):
        raise DamagedZooError(f"{folder}: {fault}")
    return load_spec(folder / "spec.yaml")


def faults(folder: Path) -> Iterator[str]:
    """Yield everything that is wrong with a zoo folder, finished or not: one line per fault."""
    from zootools.card import card_location, render_card

    zoo = ZooFolder(folder)
    plan = zoo.read_plan()
    if plan is not None:
        for stack in range(len(plan.stacks)):
            record = zoo.read_record(stack)
            yield from _file_faults(folder, record.shards if record else {})
        return
    manifest = read_manifest(folder)
    yield from _file_faults(folder, manifest["files"])
    readme = folder / "README.md"
    if not readme.exists():
        yield "README.md: is missing"
    elif any(_file_faults(folder, {"spec.yaml": manifest["files"]["spec.yaml"]})):
        pass  # named above; without the specification there is no card to compare with
    elif (card := readme.read_bytes()) != render_card(
        manifest, stored_spec(folder, manifest), card_location(card)
    ).encode():
        yield "README.md: is not the card that zoo.json and spec.yaml make"
    known = {*manifest["files"], *UNHASHED}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not name.startswith(".") and (path.is_symlink() or (path.is_file() and name not in known)):
            yield f"{name}: is not in the manifest"


def _file_faults(folder: Path, files: dict[str, Any]) -> Iterator[str]:
    for name, info in sorted(files.items()):
        path = folder / name
        if path.is_symlink() or not path.is_file():
            yield f"{name}: is {'a link' if path.is_symlink() else 'missing'}"
        elif path.stat().st_size != info["size"]:
            yield f"{name}: has {path.stat().st_size} bytes, expected {info['size']}"
        elif sha256_file(path) != info["sha256"]:
            yield f"{name}: its bytes have changed (sha256)"


def _check_name(path: Path, name: str) -> None:
    """A manifest names plain files below its folder, nothing else."""
    parts = PurePosixPath(name).parts
    plain = all(part[0] != "." and part.replace("-", "").replace(".", "").replace("_", "").isalnum() for part in parts)
    if not parts or not plain or not name.isascii() or len(name) > 200 or name != "/".join(parts):
        raise DamagedZooError(f"{path}: the file name {name!r} is not allowed in a zoo")


def own_hash(manifest: dict[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def spec_yaml(spec: ZooSpec) -> bytes:
    """Return a specification as the YAML text that a zoo stores."""
    return yaml.safe_dump(spec.dump(), sort_keys=False, allow_unicode=True, width=100).encode()
