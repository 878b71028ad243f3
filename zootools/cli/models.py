"""Commands that look at the models of a zoo: all of them, one of them, and their weights as files."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zootools.choices import EXPORTS
from zootools.cli.completion import complete_models
from zootools.cli.output import in_words, show_pairs, show_table
from zootools.cli.shared import JSON, SCHEMA, ZOO, PathType, Word, print_value, without_pandas
from zootools.text import say

if TYPE_CHECKING:
    import pyarrow as pa

    from zootools.selection import Epoch
    from zootools.zoo import Zoo

BY_EPOCH = (
    "epoch",
    *(f"{images}_{score}" for images in ("train", "validation", "test") for score in ("loss", "accuracy")),
    "generalization_gap",
)
"""Columns of the metadata that change from epoch to epoch."""
CHECKPOINT = "safetensors"
"""The format of one checkpoint; the others are of whole zoos."""
SHORTEST = 8
"""Characters that a table shows of a model id, if no other id begins with them."""
WIDE = ("configuration_id", "test_f1")
"""Columns that a table on a terminal has only if they are asked for."""


class EpochType(click.ParamType[Any]):
    """An epoch on the command line: a number, ``last`` or ``best``."""

    name = "epoch"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> "Epoch":
        """Return the number or the word. Fails like every type of click."""
        text = str(value)
        if text in ("last", "best"):
            return text  # type: ignore[return-value]
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            self.fail(f"found {text!r}; expected a number from 0, 'last' or 'best'", param, ctx)
        return int(text)


EPOCH = EpochType()
BEST = "the best is that of the highest validation_accuracy, or of test_accuracy where there is no validation set"


def _names(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Return the names in a list with commas."""
    return tuple(name for name in (part.strip() for part in (value or "").split(",")) if name)


@click.command()
@ZOO
@click.option("--where", metavar="CONDITION", help="Only the rows for which this holds: test_accuracy > 0.5.")
@click.option(
    "--sort", metavar="NAME,...", callback=_names, help="Sort by columns; -NAME begins with the largest value."
)
@click.option("--columns", metavar="NAME,...", callback=_names, help="Show these columns, in this order.")
@click.option(
    "--epoch", type=EPOCH, metavar="last|best|E", default="last", show_default=True, help=f"Which checkpoint; {BEST}."
)
@click.option("--csv", "form", flag_value="csv", help="Print the table as CSV.")
@click.option("--json", "form", flag_value="json", help="Print one JSON object on stdout, nothing else.")
@click.option("--parquet", "form", flag_value="parquet", help="Print the table as a Parquet file.")
@click.option("-o", "--output", metavar="FILE", type=PathType(), help="Write CSV, JSON or Parquet to a file.")
@SCHEMA
def models(
    zoo: str,
    where: str | None,
    sort: tuple[str, ...],
    columns: tuple[str, ...],
    epoch: "Epoch",
    form: str | None,
    output: Path | None,
    schema: Path | None,
) -> None:
    """List the models of a zoo, one row each: id, configuration, seed, and the scores of one checkpoint.

    The row is that of the last epoch by default, and --where and --sort see it only. The table on the terminal has no
    column that is the same in all rows. Diverged models are listed too (`--where "status == 'ok'"` leaves them out).

    \b
    Examples:
      zootools models zoos/digits_seed --where "test_accuracy > 0.5" --sort -test_accuracy
      zootools models zoos/digits_seed --epoch best --columns model_id,epoch,test_accuracy --csv -o models.csv
    """
    from zootools.filesystem.files import check_output, write_output
    from zootools.listing import model_table, to_bytes
    from zootools.open import open_zoo

    if output is not None:
        if form is None:
            raise click.UsageError("-o writes a file, and needs --csv, --json or --parquet")
        check_output(output, f"models.{form}")
    elif form == "parquet" and sys.stdout.isatty():
        raise click.UsageError("--parquet prints bytes, not text; give a file with -o, or a pipe")
    without_pandas()
    opened = open_zoo(zoo, schema=schema, include_diverged=True)
    table = model_table(opened, epoch=epoch, where=where, sort=sort, columns=columns)
    if form is None:
        _show_models(table, opened, bool(columns))
    elif output is None:
        sys.stdout.buffer.write(to_bytes(table, form))
        sys.stdout.buffer.flush()
    else:
        write_output(output, to_bytes(table, form), f"models.{form}")
        say(f"{output}: {len(table):,} models", err=True)


def _show_models(table: "pa.Table", zoo: "Zoo", chosen: bool) -> None:
    """Print a table of models; unless its columns were chosen, those with one value only are a line above it."""
    columns = {name: table[name].to_pylist() for name in table.column_names if chosen or name not in WIDE}
    heading = f"{len(table):,} of {len(zoo.models):,} models"
    if not chosen and len(table) > 1:
        same = {name: values[0] for name, values in columns.items() if all(value == values[0] for value in values)}
        columns = {name: values for name, values in columns.items() if name not in same}
        heading += f"; in all rows: {in_words(same)}" if same else ""
    if "model_id" in columns:
        length = _id_length(zoo.models)
        columns["model_id"] = [text[:length] for text in columns["model_id"]]
    say(heading)
    show_table(list(columns), zip(*columns.values(), strict=True))


def _id_length(models: list[str]) -> int:
    """Return the number of characters that tell all ids from each other, at least `SHORTEST`."""
    length = SHORTEST
    while len({model[:length] for model in models}) < len(models):
        length += 1
    return length


@click.command()
@ZOO
@click.argument("model_id", metavar="MODEL", shell_complete=complete_models)
@click.option("--epoch", type=EPOCH, metavar="last|best|E", help=f"Only one epoch; {BEST}.")
@JSON
def show(zoo: str, model_id: str, epoch: "Epoch | None", as_json: bool) -> None:
    """Show one model over its epochs.

    MODEL is its id, or as many characters of its beginning as no other id has.

    \b
    Examples:
      zootools show zoos/digits_seed 0fc2
      zootools show zoos/digits_seed 0fc2 --epoch best
    """
    from zootools.open import open_zoo

    without_pandas()
    opened = open_zoo(zoo, include_diverged=True)
    model_id = opened.model_id(model_id)
    chosen = opened.model(model_id) if epoch is None else opened.checkpoint(model_id, epoch)
    rows = chosen.metadata.to_pylist()
    changing = [name for name in BY_EPOCH if name in rows[0]]
    fixed = {key: rows[0][key] for key in rows[0] if key not in (*changing, "test_f1", "row", "stack")}
    value = {
        **fixed,
        "stopped": asdict(opened.stopped[model_id]) if model_id in opened.stopped else None,
        "epochs": [{k: row[k] for k in changing} for row in rows],
    }

    def show_rows(value: dict[str, Any]) -> None:
        show_pairs({key: item for key, item in value.items() if key != "epochs" and item is not None})
        show_table(changing, (list(row.values()) for row in value["epochs"]))

    print_value(value, as_json, show_rows)


@click.command()
@ZOO
@click.option(
    "--model",
    "model_id",
    metavar="MODEL",
    shell_complete=complete_models,
    help="Only this model, by its id or the beginning of it.",
)
@click.option("--epoch", type=EPOCH, metavar="last|best|E", help=f"Only this epoch; 0 is the initialisation; {BEST}.")
@click.option(
    "--best",
    "metric",
    metavar="METRIC",
    help="Only the checkpoint with the best value of a column: the lowest of losses and errors, the generalization_gap "
    "closest to zero, the highest mean of test_f1, the highest value of every other column; of equal ones the earliest "
    "epoch.",
)
@click.option(
    "--format",
    "form",
    type=Word((CHECKPOINT, *EXPORTS)),
    default=CHECKPOINT,
    show_default=True,
    help="One checkpoint as a file, or all of them in a new folder, as other tools read them.",
)
@click.option("-o", "--output", required=True, metavar="FILE|DIR", type=PathType(), help="The file, or the folder.")
@SCHEMA
def export(
    zoo: str,
    model_id: str | None,
    epoch: "Epoch | None",
    metric: str | None,
    form: str,
    output: Path,
    schema: Path | None,
) -> None:
    """Write one checkpoint as a safetensors file, parameters by name, or a whole zoo for other tools.

    \b
    safetensors  one checkpoint, of --model at --epoch, or the one that is --best
    index-dict   index_dict.json, and flat weights in Parquet files
    numpy        weights.npy, metrics.csv.gz, layout.csv: the files of the Small CNN Zoo, in the order of TensorFlow
    state-dicts  a safetensors file for each checkpoint, and a table of their properties

    Diverged models are exported by --format safetensors --model only. `zootools import` reads every folder back.

    \b
    Examples:
      zootools export zoos/digits_seed --best test_accuracy -o best.safetensors
      zootools export zoos/digits_seed --epoch last --format state-dicts -o exported
    """
    from zootools.filesystem.files import check_output
    from zootools.importers.export import export_zoo
    from zootools.open import open_zoo

    if form == CHECKPOINT:
        if metric is None and (model_id is None or epoch is None):
            missing = "--model" if model_id is None else "--epoch"
            raise click.UsageError(
                f"--format {CHECKPOINT} writes one checkpoint, and needs {missing} (or --best METRIC)"
            )
        check_output(output, _file_name(model_id or "model", "best" if epoch is None else epoch))
    chosen = open_zoo(zoo, schema=schema, include_diverged=form == CHECKPOINT and model_id is not None)
    if model_id is not None:
        chosen = chosen.model(model_id) if epoch is None else chosen.checkpoint(model_id, epoch)
    elif epoch is not None:
        chosen = chosen.at(epoch)
    if metric is not None:
        chosen = chosen.best_checkpoint(metric)
    if form == CHECKPOINT:
        _export_checkpoint(chosen, output)
    else:
        count = export_zoo(chosen, output, form)
        say(f"{output}: {count:,} checkpoints of {chosen.schema.size:,} parameters", err=True)


def _export_checkpoint(chosen: "Zoo", output: Path) -> None:
    """Write the one checkpoint of a zoo to a file."""
    from safetensors.torch import save

    from zootools.filesystem.files import write_output

    row = chosen.metadata.select(["model_id", "epoch"]).to_pylist()[0]
    state = chosen.state_dict(row["model_id"], row["epoch"])
    about = json.dumps({"epoch": row["epoch"], "model_id": row["model_id"]})
    write_output(output, save(state, {"zootools": about}), _file_name(row["model_id"], row["epoch"]))
    # On stderr, because the file may be stdout itself (-o /dev/stdout).
    count = sum(tensor.numel() for tensor in state.values())
    say(f"{output}: model {row['model_id']}, epoch {row['epoch']}, {count:,} parameters", err=True)


def _file_name(model_id: str, epoch: "Epoch") -> str:
    """Return the name that a message suggests for the file of a checkpoint."""
    return f"{model_id}-epoch-{epoch}.safetensors"
