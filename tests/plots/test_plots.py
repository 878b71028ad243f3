"""Pictures of zoos: what is in them, where it is drawn, and that captions name what is left out."""

import itertools
import json
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from samples import TINY_ZOO

from representation.evaluation.baselines import flatten
from zootools import build, open_zoo
from zootools.cli import main
from zootools.errors import SpecError
from zootools.plots import (
    Portrait,
    accuracy,
    class_scores,
    embedding,
    figure_4,
    figure_7,
    gap,
    losses,
    mean_weight,
    pictures,
    write_pictures,
)
from zootools.plots.limits import beyond, frame, limits
from zootools.plots.panels import MAX_BOXES, Colours
from zootools.plots.portrait import MAX_POINTS
from zootools.plots.style import looks, styled
from zootools.plots.writing import image_bytes
from zootools.spec import FolderImages, parse_spec

ALL = {
    "accuracy",
    "mean-weight",
    "gap",
    "losses",
    "classes",
    "weights",
    "statistics",
    "figure-4",
    "figure-7",
    "figure-8",
}


def words(svg: bytes) -> set[str]:
    """The texts of an SVG, which must be one that parses."""
    found = ET.fromstring(svg.decode()).iter("{http://www.w3.org/2000/svg}text")
    return {"".join(element.itertext()) for element in found}


def portrait_of(zoo: Path, **more: Any) -> Portrait:
    """A portrait with two planes, by PCA, which costs less than UMAP."""
    portrait = Portrait.of(open_zoo(zoo, include_diverged=True), **more)
    points, method = flatten(portrait.zoo.weights(), umap=False)
    return portrait.with_plane("W", points, method).with_plane("z", points.flip(1), method)


@pytest.fixture(scope="module")
def portrait(look_zoo: Path) -> Portrait:
    """The portrait of `look_zoo`."""
    return portrait_of(look_zoo)


@pytest.fixture(scope="module")
def many_labels(portrait: Portrait) -> Portrait:
    """The same with 30 initialisations, some of which are meant to do harm."""
    bad = ["$\\frac{", "<script>alert(1)</script>", "nul\x1b\x00", "字", "a very long name of an initialisation", ""]
    names = [*bad, *bad, *(f"label {number}" for number in range(24))]
    table = portrait.zoo.metadata
    column = pa.array([names[row % len(names)] for row in range(len(portrait.zoo))])
    table = table.set_column(table.column_names.index("init"), "init", column)
    return replace(portrait, zoo=replace(portrait.zoo, metadata=table), name="$\\bad{ & <name>")


@pytest.fixture(scope="module")
def drawn(look_zoo: Path, look_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `zootools plot` writes for `look_zoo`, with an encoder."""
    out = tmp_path_factory.mktemp("pictures")
    done = CliRunner().invoke(
        main, ["plot", str(look_zoo), "--encoder", str(look_encoder), "-o", str(out), "--json"], catch_exceptions=False
    )
    value = json.loads(done.stdout)
    assert value["skipped"] == {}
    assert {Path(file).stem for file in value["files"]} == ALL | {"representation"}
    return out


@pytest.mark.slow
def test_plot_writes_every_picture_as_svg_and_png(drawn: Path) -> None:
    for name in ALL | {"representation"}:
        assert (drawn / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        said = words((drawn / f"{name}.svg").read_bytes())
        assert any("look" in word for word in said), name
        assert any("24 diverged" in word for word in said) or name == "losses"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accuracy", {"epoch", "test accuracy", "all 120 checkpoints; without 24 diverged models"}),
        ("mean-weight", {"mean of the weights", "test accuracy", "epoch"}),
        ("gap", {"generalisation gap", "(training minus test accuracy)", "test accuracy", "epoch"}),
        ("losses", {"training loss", "(mean cross-entropy, nats)", "median", "a model that diverged, x its last checkpoint", "epoch"}),  # noqa: E501
        ("classes", {"class", "F score on the test images", "I", "O", "the last checkpoints of 24 models; without 24 diverged models"}),  # noqa: E501
        ("weights", {"UMAP 1 of W", "activation", "initialisation", "relu", "tanh", "normal", "uniform", "epoch"}),
        ("statistics", {"UMAP 2 of s(W)", "look: UMAP of the weight statistics s(W)"}),
        ("representation", {"UMAP 1 of z", "look: UMAP of the learned representation z"}),
        ("figure-4", {"UMAP 1 of W", "initialisation", "normal", "uniform"}),
        ("figure-7", {"test accuracy", "mean of the weights", "UMAP 1 of W", "activation", "initialisation"}),
        ("figure-8", {"UMAP 1 of W", "UMAP 1 of s(W)", "UMAP 1 of z", "activation", "test accuracy"}),
    ],
)  # fmt: skip
def test_pictures_name_axes_units_and_colours(drawn: Path, name: str, expected: set[str]) -> None:
    assert expected <= words((drawn / f"{name}.svg").read_bytes())


@pytest.mark.slow
def test_pictures_of_an_unchanged_zoo_are_unchanged(look_zoo: Path) -> None:
    first, second = portrait_of(look_zoo), portrait_of(look_zoo)
    for draw in (losses, gap, lambda portrait: figure_7([portrait])):
        for ending in ("svg", "png"):
            assert image_bytes(draw(first), ending) == image_bytes(draw(second), ending)


def test_the_f_scores_of_the_classes_are_drawn_by_their_names_or_numbers(portrait: Portrait) -> None:
    (axes,) = class_scores(portrait).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == [*portrait.zoo.class_names]
    last = open_zoo(portrait.zoo.folder).last().metadata["test_f1"].to_pylist()
    medians = [line.get_ydata()[0] for line in axes.lines if line.get_color() == "#D55E00"]
    np.testing.assert_allclose(medians, np.median(last, axis=0))
    unnamed = replace(portrait.zoo, stored_spec=portrait.zoo.spec.model_copy(update={"images": FolderImages(
        name="image_folder", folder="mine", train=10, size=4
    )}))  # fmt: skip
    (axes,) = class_scores(replace(portrait, zoo=unnamed)).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "2", "3"]
    foreign = replace(portrait, zoo=replace(portrait.zoo, stored_spec=None))
    assert "only zoos that zootools has built" in {name: why for name, _, why in pictures(foreign)}["classes"]


def test_boxes_show_the_accuracies_of_the_models_that_did_not_diverge(portrait: Portrait) -> None:
    (axes,) = accuracy(portrait).axes
    table = open_zoo(portrait.zoo.folder).metadata
    medians = [line.get_ydata()[0] for line in axes.lines if line.get_color() == "#D55E00"]
    by_epoch = [table.filter(pc.equal(table["epoch"], epoch))["test_accuracy"].to_numpy() for epoch in range(5)]
    np.testing.assert_allclose(medians, [np.median(values) for values in by_epoch])


def test_points_are_the_mean_weight_and_the_accuracy_of_the_same_checkpoint(portrait: Portrait) -> None:
    axes = mean_weight(portrait).axes[0]
    zoo = open_zoo(portrait.zoo.folder)
    columns = [
        zoo.weights().double().mean(1).numpy(),
        *(zoo.metadata[n].to_numpy() for n in ("test_accuracy", "epoch")),
    ]
    (points,) = [c for c in axes.collections if isinstance(c, PathCollection) and len(c.get_offsets())]
    shown = np.column_stack([points.get_offsets(), points.get_array()])
    np.testing.assert_allclose(sorted(shown.tolist()), sorted(np.column_stack(columns).tolist()))


def test_loss_curves_mark_the_models_that_diverged(portrait: Portrait) -> None:
    axes = losses(portrait).axes[0]
    good, bad = (c.get_segments() for c in axes.collections if isinstance(c, LineCollection))
    assert (len(good), len(bad)) == (24, 24)
    table = portrait.metadata
    losses_there = table["train_loss"].to_numpy()
    assert {tuple(point) for line in good for point in line} <= set(
        zip(table["epoch"].to_pylist(), losses_there, strict=True)
    )
    (marks,) = (line for line in axes.lines if line.get_marker() == "x")
    ends = table.filter(pc.not_equal(table["status"], "ok")).group_by("model_id").aggregate([("epoch", "max")])
    assert sorted(marks.get_xdata()) == sorted(ends["epoch_max"].to_pylist())
    (median,) = (line for line in axes.lines if line.get_color() == "black")
    first = table.filter(pc.and_(pc.equal(table["epoch"], 0), pc.equal(table["status"], "ok")))
    assert median.get_ydata()[0] == np.median(first["train_loss"].to_numpy())


def test_colours_follow_the_property(portrait: Portrait) -> None:
    figure = figure_4([portrait])
    offsets = np.concatenate([c.get_offsets() for c in figure.axes[0].collections])
    colours = np.concatenate([c.get_facecolors() for c in figure.axes[0].collections])
    init = dict(zip(map(tuple, portrait.planes["W"].points), portrait.zoo.metadata["init"].to_pylist(), strict=True))
    shown = {(init[tuple(point)], tuple(colour[:3].round(2))) for point, colour in zip(offsets, colours, strict=True)}
    assert shown == {("normal", (0, 0.45, 0.7)), ("uniform", (0.9, 0.62, 0))}


# --- positions --------------------------------------------------------------------------------------------------


def extents(figure: Figure) -> Iterator[tuple[str, Bbox]]:
    """The boxes of a picture's texts and axes, with their names."""
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    for number, axes in enumerate(figure.axes):
        if axes.get_legend():
            yield f"legend of axes {number}", axes.get_legend().get_window_extent(renderer)
        if not axes.axison:  # which holds nothing but a legend
            continue
        yield f"axes {number}", axes.get_window_extent(renderer)
        labels = [axes.xaxis.label, axes.yaxis.label, axes._left_title, axes._right_title]  # type: ignore[attr-defined]
        for tick in (*axes.xaxis.get_ticklabels(), *axes.yaxis.get_ticklabels()):
            low, high = sorted(axes.get_xlim() if tick in axes.xaxis.get_ticklabels() else axes.get_ylim())
            position = tick.get_position()[0 if tick in axes.xaxis.get_ticklabels() else 1]
            labels += [tick] if low <= position <= high else []
        for text in labels:
            if text.get_visible() and text.get_text():
                yield f"{text.get_text()!r} of axes {number}", text.get_window_extent(renderer)
    for legend in figure.legends:
        yield "legend", legend.get_window_extent(renderer)
    if isinstance(figure._suptitle, Text):  # type: ignore[attr-defined]
        yield "title", figure._suptitle.get_window_extent(renderer)  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Glyph:UserWarning")  # of the label that the font cannot show
@pytest.mark.parametrize("which", ["portrait", "many_labels", "exploded", "side by side"])
def test_nothing_overlaps_and_nothing_is_cut_off(which: str, portrait: Portrait, many_labels: Portrait) -> None:
    if which == "side by side":
        large = replace(portrait, shown=pa.concat_tables([portrait.shown] * 700))
        assert large.sampling.startswith("sample of 120 of 84,000 checkpoints")
        zoos = [large, large, many_labels, exploded(large), portrait]
        drawn = {"figure-4": figure_4(zoos), "figure-7": figure_7(zoos)}
    else:
        chosen = {"portrait": portrait, "many_labels": many_labels, "exploded": exploded(portrait)}[which]
        drawn = {name: draw() for name, draw, reason in pictures(chosen) if not reason}
        assert set(drawn) == ALL - {"statistics"} | {"representation"}
    for name, figure in drawn.items():
        with styled():
            FigureCanvasAgg(figure)
            figure.draw_without_rendering()
        found = list(extents(figure))
        assert len(found) >= 3, f"{name}: axes, their labels and a title"
        width, height = figure.bbox.size
        for what, box in found:
            assert min(box.x0, box.y0, width - box.x1, height - box.y1) > -1, (name, what, box)
        for (one, first), (other, second) in itertools.combinations(found, 2):
            # A point of tolerance: boxes of texts are larger than their letters.
            across = min(first.x1, second.x1) - max(first.x0, second.x0)
            along = min(first.y1, second.y1) - max(first.y0, second.y0)
            assert across < 2 or along < 2, f"{name}: {one} overlaps {other} by {across:.1f} x {along:.1f}"


# --- zoos of every kind ----------------------------------------------------------------------------------------


def test_a_sample_is_stated_and_always_the_same(look_zoo: Path) -> None:
    portrait = portrait_of(look_zoo, limit=20)
    assert portrait.sampling == "sample of 20 of 120 checkpoints; without 24 diverged models"
    assert portrait.zoo.metadata.equals(portrait_of(look_zoo, limit=20).zoo.metadata)
    for name, draw, _ in pictures(portrait):
        if name not in ("accuracy", "classes", "losses"):  # which are made of all
            assert any("sample of 20 of 120" in word for word in words(image_bytes(draw(), "svg"))), name


def test_a_sample_of_whole_models_has_all_their_checkpoints(look_zoo: Path) -> None:
    portrait = portrait_of(look_zoo, limit=52, whole_models=True)
    table = portrait.zoo.metadata
    assert len(table) == 50
    assert table["epoch"].to_pylist() == list(range(5)) * 10
    assert [len(set(table["model_id"].to_pylist()[row : row + 5])) for row in range(0, 50, 5)] == [1] * 10
    assert len(portrait_of(look_zoo, limit=3, whole_models=True).zoo) == 3  # even one model is too many


@pytest.mark.slow
def test_a_zoo_of_one_model(tmp_path: Path) -> None:
    spec = TINY_ZOO | {"name": "lonely", "seeds": {"range": [1, 1]}}
    build(parse_spec(spec, "test"), tmp_path / "zoo", workers=1, quiet=True)
    files, skipped = write_pictures(portrait_of(tmp_path / "zoo"), tmp_path / "out")
    assert skipped == {"figure-4": "the initialisation does not vary"}
    assert all(file.stat().st_size for file in files)


@pytest.mark.slow
def test_a_zoo_of_which_every_model_diverged(tmp_path: Path) -> None:
    grid = TINY_ZOO["grid"] | {"optimizer": ["sgd"], "lr": [100.0], "weight_decay": [1.0]}
    build(parse_spec(TINY_ZOO | {"name": "lost", "grid": grid}, "test"), tmp_path / "zoo", workers=1, quiet=True)
    portrait = portrait_of(tmp_path / "zoo")
    assert portrait.sampling == f"all {len(portrait.metadata)} checkpoints; all 12 models diverged"
    files, _ = write_pictures(portrait, tmp_path / "out")
    said = words(next(file for file in files if file.name == "losses.svg").read_bytes())
    assert "a model that diverged, x its last checkpoint" in said
    assert "median" not in said


def test_labels_of_strangers_are_texts_and_the_rarest_share_a_look(many_labels: Portrait) -> None:
    said = words(image_bytes(embedding(many_labels, "W"), "svg"))
    assert {"<script>alert(1)</script>"[:23] + "…", "$\\frac{", "nul??", "字", "10 others"} <= said
    assert any(word.startswith("$\\bad{ & <name>") for word in said)
    assert len(set(looks(["a", "b", "c"]).values())) == 3


@pytest.mark.slow
def test_a_foreign_population_of_a_hundred_thousand_checkpoints(tiny_zoo: Path, tmp_path: Path) -> None:
    schema, rows = tmp_path / "schema.json", 100_000
    schema.write_text(json.dumps(json.loads((tiny_zoo / "zoo.json").read_text())["schema"]))
    weights = torch.randn(rows, 100, generator=torch.Generator().manual_seed(0)).numpy()
    weights[7] = np.inf
    columns = {
        "temperature": np.arange(rows) / rows,
        "kind": pa.array([None if row % 3 == 0 else "ab"[row % 2] for row in range(rows)]),
        "weights": pa.FixedSizeListArray.from_arrays(pa.array(weights.reshape(-1)), 100),
    }
    pq.write_table(pa.table(columns), tmp_path / "population.parquet")
    portrait = Portrait.of(open_zoo(tmp_path / "population.parquet", schema=schema, include_diverged=True))
    assert (len(portrait.zoo), portrait.properties) == (MAX_POINTS, ["temperature", "kind"])
    points, method = flatten(portrait.zoo.weights(), umap=False)
    portrait = portrait.with_plane("W", points, method).with_plane("mine", points, method)
    files, skipped = write_pictures(portrait, tmp_path / "out")
    assert skipped["accuracy"] == "there is no property test_accuracy"
    assert {"weights.svg", "mine.svg", "figure-8.svg"} <= {file.name for file in files}
    said = words((tmp_path / "out" / "weights.svg").read_bytes())
    assert {"temperature", "kind", "a", "b", "unknown"} <= said
    assert any("sample of 5,000 of 99,999 checkpoints; without 1 diverged" in word for word in said)


def test_many_epochs_are_thinned_and_the_picture_says_so(portrait: Portrait) -> None:
    table = portrait.shown
    long = [table.set_column(3, "epoch", pc.add(table["epoch"], pa.scalar(5 * n, pa.int32()))) for n in range(20)]
    said = words(image_bytes(accuracy(replace(portrait, shown=pa.concat_tables(long))), "svg"))
    assert any(f"{MAX_BOXES} of 100 epochs" in word for word in said)


# --- outliers ----------------------------------------------------------------------------------------------------


def exploded(portrait: Portrait, count: int = 7) -> Portrait:
    """The same portrait, of which some networks have grown to weights of 1e25."""
    size = np.ones(len(portrait.zoo))
    size[:count] = 1e25
    planes = {label: replace(where, points=where.points * size[:, None]) for label, where in portrait.planes.items()}
    return replace(portrait, mean_weights=portrait.mean_weights * size, planes=planes)


def test_outliers_do_not_squeeze_the_rest() -> None:
    values = np.concatenate([np.linspace(0, 1, 99), [1e25, np.nan]])
    assert limits(values) == (0, 1)
    assert beyond(values, frame(values)).tolist() == [False] * 99 + [True, False]
    assert limits(np.array([1.0] * 19 + [5.0])) == (1, 5)
    assert limits(np.array([0.3, 0.4, 1e9]), np.linspace(0, 1, 11)) == (0.3, 0.4)
    low, high = frame(np.array([2.0]))
    assert low < 2 < high


def test_outliers_are_drawn_at_the_border_and_counted(portrait: Portrait) -> None:
    for figure, plain in (
        (figure_4([exploded(portrait)]), figure_4([portrait])),
        (mean_weight(exploded(portrait)), mean_weight(portrait)),
    ):
        axes = figure.axes[0]
        points = np.concatenate([c.get_offsets() for c in axes.collections if isinstance(c, PathCollection)])
        assert len(points) == len(portrait.zoo)
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        at_border = np.isin(points[:, 0], (left, right)) | np.isin(points[:, 1], (bottom, top))
        assert at_border.sum() == 7
        assert right - left <= 2 * np.ptp(plain.axes[0].get_xlim())
        assert "7 beyond, at the border" in axes.get_title("left")


def test_losses_far_beyond_are_counted(portrait: Portrait) -> None:
    table = portrait.metadata
    good = pc.equal(table["status"], "ok").to_numpy()
    huge = table["train_loss"].to_numpy().copy()
    huge[np.flatnonzero(good)[:3]] = 1e25
    table = table.set_column(table.column_names.index("train_loss"), "train_loss", pa.array(huge))
    axes = losses(replace(portrait, metadata=table)).axes[0]
    assert "beyond, at the border" in axes.get_title("left")
    assert axes.get_ylim()[1] < 1e12


def test_a_scale_of_colours_ends_before_outliers(portrait: Portrait) -> None:
    table = portrait.zoo.metadata
    accuracies = table["test_accuracy"].to_numpy().copy()
    accuracies[0] = 1e25
    table = table.set_column(table.column_names.index("test_accuracy"), "test_accuracy", pa.array(accuracies))
    figure = embedding(replace(portrait, zoo=replace(portrait.zoo, metadata=table)), "W")
    (bar,) = [axes for axes in figure.axes if axes.get_ylabel() == "test accuracy"]
    assert bar.get_ylim()[1] == accuracies[1:].max()


def test_checkpoints_without_a_place_are_counted(portrait: Portrait) -> None:
    points = portrait.planes["W"].points.copy()
    points[:2] = np.nan
    (heading,) = {axes.get_title("left") for axes in figure_4([portrait.with_plane("W", points, "PCA")]).axes[:1]}
    assert "2 not shown: W is not finite" in heading


@pytest.mark.slow
def test_networks_that_exploded_have_a_place_in_the_plane() -> None:
    rows = torch.randn(100, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain, _ = flatten(rows, umap=False)
    spoilt, _ = flatten(torch.cat([rows, torch.full((1, 3), 1e9, dtype=torch.float64)]), umap=False)
    torch.testing.assert_close(plain, spoilt[:100])
    rows[:2] *= 1e30
    rows[2] = torch.nan
    for umap in (False, True):
        points, method = flatten(rows, umap)
        assert method == ("UMAP" if umap else "PCA")
        assert points.isfinite().all(dim=1).tolist() == [True] * 2 + [False] + [True] * 97
    assert flatten(torch.full((3, 5), torch.nan))[0].isnan().all()


# --- zoos with few epochs, and several zoos side by side --------------------------------------------------------


@pytest.mark.parametrize("epochs", [[3], [0, 1]])
def test_epochs_are_whole_numbers_everywhere(portrait: Portrait, epochs: list[int]) -> None:
    def kept(table: pa.Table) -> pa.Table:
        column = table["epoch"]
        return table.set_column(
            table.column_names.index("epoch"), "epoch", pa.array(np.resize(epochs, len(column)), column.type)
        )

    few = replace(
        portrait,
        metadata=kept(portrait.metadata),
        shown=kept(portrait.shown),
        zoo=replace(portrait.zoo, metadata=kept(portrait.zoo.metadata)),
    )
    for draw in (accuracy, gap, losses, mean_weight, lambda p: figure_7([p]), lambda p: embedding(p, "W")):
        figure = draw(few)
        with styled():
            FigureCanvasAgg(figure)
            figure.draw_without_rendering()
        for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
            if axis.label.get_text() == "epoch" and axis.get_visible():
                low, high = sorted(axis.get_view_interval())
                said = [
                    t.get_text()
                    for t in axis.get_ticklabels()
                    if low <= t.get_position()[axis.axis_name == "y"] <= high
                ]
                assert said == [str(epoch) for epoch in epochs]
    assert ("epoch 3 only" in mean_weight(few).axes[0].get_title("left")) == (epochs == [3])


def test_a_label_has_one_colour_in_all_zoos_of_a_picture(portrait: Portrait) -> None:
    table = portrait.zoo.metadata
    one = table.set_column(table.column_names.index("init"), "init", pa.array(["uniform"] * len(table)))
    first, second, key = figure_4([replace(portrait, zoo=replace(portrait.zoo, metadata=one)), portrait]).axes
    (only,) = {tuple(colour) for c in first.collections for colour in c.get_facecolors()}
    assert only in {tuple(colour) for c in second.collections for colour in c.get_facecolors()}
    assert [text.get_text() for text in key.get_legend().get_texts()] == ["normal", "uniform"]


def test_what_is_missing_is_named(tiny_zoo: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        done = CliRunner().invoke(main, ["plot", str(tiny_zoo), "-o", str(tmp_path)])
        assert done.exit_code == 2
        assert done.stderr == "zootools: zootools plot needs matplotlib: pip install 'zootools[plots]'\n"
    monkeypatch.setitem(sys.modules, "umap", None)
    assert flatten(open_zoo(tiny_zoo).weights())[1] == "PCA"


def test_only_the_pictures_that_are_asked_for_are_drawn(look_zoo: Path, tmp_path: Path) -> None:
    words = ["plot", str(look_zoo), "--only", "accuracy", "--only", "gap", "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(main, words, catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    assert {path.stem for path in (tmp_path / "out").iterdir()} == {"accuracy", "gap"}
    assert "drawing: 100 of 100 percent" in done.stderr
    refused = CliRunner().invoke(main, ["plot", str(look_zoo), "--only", "acuracy"])
    assert (refused.exit_code, "did you mean 'accuracy'" in refused.stderr) == (2, True)
    refused = CliRunner().invoke(main, ["plot", str(look_zoo), "--only", "representation"])
    assert (refused.exit_code, "needs --encoder" in refused.stderr) == (2, True)


@pytest.mark.parametrize(
    ("colour", "expected"),
    [("init", {"initialisation", "normal", "uniform"}), ("test_loss", {"test loss"}), ("seed", {"seed"})],
)
def test_points_are_coloured_by_any_column(portrait: Portrait, colour: str, expected: set[str]) -> None:
    coloured = portrait.coloured_by(colour)
    for name, draw, reason in pictures(coloured):
        if name not in ("accuracy", "classes", "losses"):  # which have no points
            assert reason == ""
            assert expected <= words(image_bytes(draw(), "svg")), name


def test_a_column_that_is_none_is_refused_with_the_nearest(portrait: Portrait) -> None:
    with pytest.raises(SpecError, match="colour: found 'ini'; did you mean 'init'"):
        portrait.coloured_by("ini")
    with pytest.raises(SpecError, match="colour: found 'test_f1'"):
        portrait.coloured_by("test_f1")


def test_the_colours_of_rates_are_logarithmic() -> None:
    table = pa.table({"lr": [1e-3, 1e-4], "accuracy": [0.5, 0.1], "loss": [1e-3, 1.0], "weight_decay": [0.0, 1e-3]})
    logarithmic = {name: isinstance(Colours.of([table], name).norm, LogNorm) for name in table.column_names}
    assert logarithmic == {"lr": True, "accuracy": False, "loss": True, "weight_decay": False}
