"""The card of a zoo: README.md, rendered from its manifest and specification and nothing else."""

import hashlib
import re
from typing import Any

from zootools.bundled import CARD_TEMPLATE
from zootools.hashing import canonical_json
from zootools.images.shapes import names_of_classes
from zootools.spec import ZooSpec
from zootools.storage.imported import Imported, Origin
from zootools.storage.manifest import PAGE, Manifest
from zootools.storage.tables import SPLITS, huggingface_features, metadata_schema, weights_schema
from zootools.text import printable
from zootools.zoo_name import parse_name

_CONFIGS = {"checkpoints": "data/", "metadata": "metadata/"}
_SIZES = (("n<1K", 10**3), ("1K<n<10K", 10**4), ("10K<n<100K", 10**5), ("100K<n<1M", 10**6), ("1M<n<10M", 10**7))

FORMS = (3, 2, 1)
"""The forms of the card, newest first. Form 2 does not say that a zoo is a part of its grid; form 1 does not name the
classes either. Cards of published zoos stay as they are, so verification accepts all."""

MAX_CLASSES = 100
"""Maximal number of classes that a card names."""

MAX_NAMES = 8
"""Maximal number of repositories that are read from a card; its description can name other zoos."""

_LOCATION = re.compile(rb'open_zoo\("([A-Za-z0-9._/-]{1,200})"\)')


def render_card(manifest: Manifest, origin: Origin, location: str | None = None, *, form: int = FORMS[0]) -> str:
    """Return the text of README.md. Equal arguments give equal bytes.

    Args:
        manifest: of the zoo.
        origin: the specification, or the record of the import.
        location: the argument that readers pass to ``load_dataset``: the repository of a published zoo, by default the
            zoo's name.
        form: one of `FORMS`.
    """
    from huggingface_hub import DatasetCard, DatasetCardData

    schema = manifest.layer_schema
    metadata = metadata_schema(origin)
    features = {"checkpoints": weights_schema(metadata, schema), "metadata": metadata}
    count = manifest.counts.checkpoints
    data = DatasetCardData(
        license=origin.license,
        pretty_name=origin.name,
        tags=["model-zoo", "zootools", "weight-space-learning"],
        task_categories=["other"],
        size_categories=next((name for name, limit in _SIZES if count < limit), "10M<n<100M"),
        configs=[config for name in _CONFIGS if (config := _config(manifest, name))["data_files"]],
        # Features only: with declared split sizes, load_dataset(filters=...) refuses what it has filtered.
        dataset_info=[
            {"config_name": name, "features": huggingface_features(columns)} for name, columns in features.items()
        ],
    )
    splits = manifest.splits.by_name()
    accuracy = dict(sorted(manifest.test_accuracy.items(), key=lambda item: int(item[0])))
    card = DatasetCard.from_template(
        data,
        template_path=str(CARD_TEMPLATE),
        pretty_name=origin.name,
        description=origin.description,
        location=location or origin.name,
        counts=manifest.counts.model_dump(),
        splits=splits,
        first_split=next((split for split in SPLITS if splits[split]), "train"),
        test_accuracy=accuracy,
        accuracy_picture=accuracy_picture(accuracy),
        parameters=schema.size,
        layers=", ".join(layer.name for layer in schema.layers),
        images=origin.images.name if origin.images is not None else None,
        classes=_classes(manifest, origin) if form >= 2 else "",
        channels=list(zip(manifest.images.mean, manifest.images.std, strict=True)),
        page=PAGE if PAGE in manifest.files else None,
        **(_import(origin) if isinstance(origin, Imported) else _training(origin, form)),
    )
    return str(card.content)


def _training(spec: ZooSpec, form: int) -> dict[str, Any]:
    """Return what the card of a zoo says that zootools built, and no other card."""
    kept = spec.training.kept_epochs
    is_part = spec.models is not None and spec.models < spec.model_count
    return {
        "imported": None,
        "parent": None,
        "runs": True,
        "authors": ", ".join(map(_escaped, spec.authors)),
        "homepage": spec.homepage,
        "citation": spec.citation.strip(),
        "fence": _fence(spec.citation),
        "architecture": spec.architecture.name,
        "batch_size": spec.training.batch_size,
        "first_epoch": kept[0],
        "last_epoch": kept[-1],
        "axes": _axes(spec),
        "grid_models": spec.model_count if is_part and form >= 3 else None,
    }


def _import(imported: Imported) -> dict[str, Any]:
    """Return what the card of an imported zoo says, and no other card. Names in it come from the population."""
    epochs = imported.epochs or [0]
    left_out = [(_plain(row.why), row.count, _plain(", ".join(row.examples))) for row in imported.left_out]
    return {
        "imported": imported,
        "parent": imported.parent,
        "settings": [(_plain(key), _plain(value)) for key, value in sorted(imported.options.items())],
        "runs": imported.runs and any(column.name == "activation" for column in imported.columns),
        "first_epoch": epochs[0],
        "last_epoch": epochs[-1],
        "left_out": left_out,
        "notes": [_plain(note) for note in imported.notes],
        "not_checked": _plain(imported.check.not_checked),
    }


def _plain(text: str) -> str:
    """Return a text of strangers as one line without the characters that make tables, links, code or HTML."""
    return re.sub(r"[^\w .,:;/=+()-]", "_", printable(text, None))


def _classes(manifest: Manifest, origin: Origin) -> str:
    """Return the numbered names of the classes; empty if none has more than one letter, such as those of digits."""
    names = names_of_classes(origin.images, manifest.images, manifest.classes)
    if all(len(name) == 1 for name in names):
        return ""
    more = f", ... ({len(names) - MAX_CLASSES:,} more)" if len(names) > MAX_CLASSES else ""
    return ", ".join(f"{number} {_escaped(name)}" for number, name in enumerate(names[:MAX_CLASSES])) + more


def _escaped(text: str) -> str:
    """Return a text as one line of Markdown that shows its characters and has no other meaning."""
    return re.sub(r"([\\`*_{}\[\]()#<>|&!~$@])", r"\\\1", printable(text, None))


def _fence(text: str) -> str:
    """Return a fence of Markdown that no line of a text ends."""
    return "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))


def accuracy_picture(summary: dict[str, list[float]]) -> str:
    """Return a box plot of the accuracy by epoch, made of characters, so that every viewer can show it."""
    width, lines = 60, []
    for epoch, values in summary.items():
        low, first, median, third, high = (min(width - 1, int(value * width)) for value in values)
        cells = [
            "#" if cell == median else "=" if first <= cell <= third else "-" if low <= cell <= high else " "
            for cell in range(width)
        ]
        lines.append(f"epoch {epoch:>5} |{''.join(cells)}|")
    axis = "0.0" + "0.5".center(width - 4) + "1.0"
    return "\n".join([*lines, f"{'':>11} {axis}", f"{'':>11} - all models   = the middle half   # median"])


def card_location(card: bytes) -> str | None:
    """Return the first ``location`` that a card may have been rendered with, or None.

    The text of the card is the only place that has it, so it is taken from the example of `open_zoo` in the card.
    """
    match = _LOCATION.search(card)
    return match[1].decode() if match else None


def card_repositories(card: bytes) -> list[str]:
    """Return the repositories (``org/name``) that a card may have been rendered for (see `card_location`)."""
    found = dict.fromkeys(match.decode() for match in _LOCATION.findall(card))
    names = [(text, parse_name(text)) for text in found]
    return [text for text, name in names if name is not None and name.revision is None][:MAX_NAMES]


def _config(manifest: Manifest, name: str) -> dict[str, Any]:
    """Return one entry of the card's ``configs``.

    It contains the hash of the files, because `datasets` caches a local folder by this entry: without it, a rebuilt zoo
    or another zoo of the same name would load as the first one.
    """
    files = {path: info.to_json() for path, info in manifest.files.items() if path.startswith(_CONFIGS[name])}
    digest = hashlib.sha256(canonical_json(files).encode()).hexdigest()
    splits = [
        {"split": split, "path": f"{_CONFIGS[name]}{split}-*.parquet"}
        for split in SPLITS
        if any(path.startswith(f"{_CONFIGS[name]}{split}-") for path in files)
    ]
    config: dict[str, Any] = {"config_name": name, "version": "1.0.0", "description": f"sha256:{digest}"}
    if name == "checkpoints":
        config["default"] = True
    return {**config, "data_files": splits}


def _axes(spec: ZooSpec) -> dict[str, str]:
    axes = {name: ", ".join(f"{value}" for value in values) for name, values in spec.grid.axes.items()}
    for name, draw in spec.sample.axes.items() if spec.sample else ():
        ((kind, values),) = draw.model_dump(exclude_none=True).items()
        axes[name] = f"{kind} of {', '.join(map(str, values))}"
    seeds = spec.seeds
    if seeds.range is not None:
        axes["seed"] = f"{seeds.range[0]} to {seeds.range[1]}"
    elif seeds.fixed is not None:
        axes["seed"] = ", ".join(map(str, seeds.fixed[:10])) + (", ..." if len(seeds.fixed) > 10 else "")
    elif seeds.random is not None:
        axes["seed"] = f"{seeds.random.per_configuration} random per configuration"
    return axes
