"""The interactive page in a real browser: clicks and filters do what they say, a stranger's texts do nothing."""

import base64
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from samples import LOOK_ZOO, TINY_ZOO

from representation.evaluation.baselines import flatten
from zootools import build, open_zoo
from zootools.architectures import build_schema
from zootools.cli import main
from zootools.errors import SpecError
from zootools.hub.publish import publish
from zootools.hub.pull import pull
from zootools.plots.page import page
from zootools.plots.portrait import Portrait
from zootools.spec import Mlp, parse_spec
from zootools.storage.manifest import read_manifest
from zootools.verify import faults

pytestmark = pytest.mark.browser
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE = 120_000
"""Milliseconds that a browser without a graphics card may take."""

HARM = '</script><img src=x onerror="window.harmed=1"><script>window.harmed=1</script>'


def view(*arguments: str | Path) -> dict[str, Any]:
    """Run `zootools view`, and return what it prints."""
    words = ["view", *map(str, arguments), "--no-open", "--json"]
    done = CliRunner().invoke(main, words, catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The system's Chromium, drawing WebGL in software."""
    from playwright.sync_api import sync_playwright

    if CHROMIUM is None:
        pytest.skip("there is no chromium")
    flags = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags, timeout=PATIENCE)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, file: Path) -> Iterator[Any]:
    """Open a page, and in the end see that nothing went wrong and nothing was asked of a network."""
    page = browser.new_page(viewport={"width": 1300, "height": 800})
    page.set_default_timeout(PATIENCE)
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_selector("body[data-ready]")
    yield page
    assert faults == []
    assert [url for url in requests if not url.startswith("data:")] == [file.as_uri()]
    page.close()


def click_on(page: Any, trace: int, point: int) -> None:
    """Click on a point of the map where it is drawn. The mouse moves again while the map is drawn again."""
    until, shown = time.monotonic() + PATIENCE / 1000, False
    while not shown:
        assert time.monotonic() < until
        x, y = page.evaluate(
            """([trace, point]) => {
                const map = document.getElementById("map"), layout = map._fullLayout, box = map.getBoundingClientRect();
                const { x, y } = map.data[trace];
                return [box.left + layout.xaxis._offset + layout.xaxis.d2p(x[point]),
                        box.top + layout.yaxis._offset + layout.yaxis.d2p(y[point])];
            }""",
            [trace, point],
        )
        page.mouse.move(x - 1, y)
        page.mouse.move(x, y)
        page.wait_for_timeout(200)
        shown = page.text_content("#hover").startswith("model ")
    page.mouse.click(x, y)


def traces(page: Any) -> list[Any]:
    """The traces that plotly draws on the map: type and number of points of each."""
    found = page.evaluate("document.getElementById('map').data.map((trace) => [trace.type, trace.x.length])")
    return list(found)


@pytest.fixture(scope="module")
def page_file(look_zoo: Path, look_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of `look_zoo`, with an encoder."""
    out = tmp_path_factory.mktemp("page") / "view.html"
    made = view(look_zoo, "--encoder", look_encoder, "-o", out)
    assert made == {"file": str(out), "bytes": out.stat().st_size, "checkpoints": 120}
    return out


def test_a_page_shows_models_and_follows_its_filters(browser: Any, page_file: Path, look_zoo: Path) -> None:
    table = open_zoo(look_zoo).metadata.to_pylist()
    with opened(browser, page_file) as page:
        assert page.text_content("#name") == "look"
        assert page.text_content("#sampling") == "all 120 checkpoints; without 24 diverged models"
        assert page.text_content("#count") == "120 of 120 checkpoints, 24 of 24 models"
        assert page.locator("#plane option").all_text_contents() == [
            "PCA of the weights W",
            "PCA of the weight statistics s(W)",
            "PCA of the learned representation z",
        ]
        assert page.eval_on_selector("#plane", "select => select.selectedOptions[0].label").endswith("z")
        assert traces(page) == [["scattergl", 120]]

        # Before the first click the best models are listed, and a click on one shows it.
        best = page.locator("#best-models tr td:last-child").all_text_contents()
        accuracies: dict[str, float] = {}
        for row in table:
            accuracies[row["model_id"]] = max(row["test_accuracy"], accuracies.get(row["model_id"], 0))
        expected = sorted(accuracies.values(), reverse=True)[:20]
        np.testing.assert_allclose([float(text) for text in best], expected, rtol=1e-4)
        page.locator("#best-models button").first.click()
        page.wait_for_selector("#model:not([hidden])")
        assert not page.locator("#best").is_visible()
        assert page.text_content("#model-name").split()[1].rstrip(",") in accuracies
        # The names of the curves are above them.
        assert page.locator("#loss-names > span").all_text_contents() == ["━ training loss", "━ test loss"]
        names, curves = (page.locator(kind).bounding_box() for kind in ("#loss-names", "#loss"))
        assert names["y"] + names["height"] <= curves["y"]
        assert page.locator("#model g.legend").count() == 0
        page.locator("#back").click()
        page.wait_for_selector("#best:not([hidden])")
        assert not page.locator("#model").is_visible()

        # A click shows the model's way, what it is, and its curves.
        page.select_option("#plane", label="PCA of the weights W")
        click_on(page, 0, 57)
        page.wait_for_selector("#model:not([hidden])")
        page.wait_for_function("document.getElementById('map').data.length === 2")
        assert traces(page) == [["scattergl", 120], ["scattergl", 5]]
        title = page.text_content("#model-name").split()
        model, epoch = title[1].rstrip(","), int(title[3])
        rows = sorted((row for row in table if row["model_id"] == model), key=lambda row: row["epoch"])
        cells = page.locator("#model td").all_text_contents()
        shown = dict(zip(cells[::2], cells[1::2], strict=True))
        assert (shown["initialisation"], shown["activation"]) == (rows[0]["init"], rows[0]["activation"])
        assert float(shown["test accuracy"]) == pytest.approx(rows[epoch]["test_accuracy"], rel=1e-4)
        for kind in ("accuracy", "loss"):
            curves = page.evaluate("(id) => document.getElementById(id).data.map((t) => Array.from(t.y))", kind)
            expected = [[row[f"{part}_{kind}"] for row in rows] for part in ("train", "test")]
            np.testing.assert_allclose(curves, expected, rtol=1e-6)

        # A filter changes the picture, the count and the tables.
        box = page.get_by_role("checkbox", name="relu")
        box.uncheck()
        page.wait_for_function("document.getElementById('map').data[0].x.length === 60")
        assert page.text_content("#count") == "60 of 120 checkpoints, 12 of 24 models"
        group = page.locator("fieldset", has=page.get_by_text("initialisation")).locator("td.number")
        assert group.all_text_contents() == ["6", "30", "6", "30"]
        page.get_by_label("epoch, at least").fill("2")
        page.get_by_label("epoch, at least").press("Enter")
        page.wait_for_function("document.getElementById('map').data[0].x.length === 36")
        assert page.text_content("#count") == "36 of 120 checkpoints, 12 of 24 models"
        box.check()
        page.wait_for_function("document.getElementById('map').data[0].x.length === 72")

        # Colours by label come with a legend.
        page.select_option("#colour", label="initialisation")
        page.wait_for_function("document.getElementById('map').data.length === 3")
        assert page.locator("#legend > span").all_text_contents() == ["● normal", "● uniform"]
        page.wait_for_function(
            "(map => Math.abs(map._fullLayout.height - map.clientHeight) <= 1)(document.getElementById('map'))",
            timeout=20_000,
        )


def test_the_texts_of_a_stranger_are_texts(browser: Any, tiny_zoo: Path, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(json.loads((tiny_zoo / "zoo.json").read_text())["schema"]))
    weights = torch.randn(40, 100, generator=torch.Generator().manual_seed(0)).numpy()
    columns = {
        "model_id": [f"{HARM}{row // 2}" for row in range(40)],
        "epoch": [row % 2 for row in range(40)],
        HARM: [f"{HARM} {row % 3}" for row in range(40)],
        f"number {HARM}": np.arange(40.0),
        "\u2028 accuracy": np.linspace(0, 1, 40),
        "weights": pa.FixedSizeListArray.from_arrays(pa.array(weights.reshape(-1)), 100),
    }
    folder = tmp_path / HARM[:20].replace("/", "_")
    folder.mkdir()
    pq.write_table(pa.table(columns), folder / "population.parquet")
    out = tmp_path / "page.html"
    view(folder, "--schema", schema, "-o", out)
    with opened(browser, out) as page:
        choices = page.locator("#colour option").all_text_contents()
        for number in range(len(choices)):
            page.select_option("#colour", str(number))
        click_on(page, 0, 11)
        page.wait_for_selector("#model:not([hidden])")
        assert page.text_content("#model-name").startswith(f"model {HARM}"[:80])
        assert any(HARM in text for text in page.locator("#filters label").all_text_contents())
        assert page.evaluate("window.harmed") is None
        assert page.locator("img").count() == 0


def test_networks_that_exploded_are_at_the_border_and_axes_have_plain_numbers(
    browser: Any, tiny_zoo: Path, tmp_path: Path
) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(json.loads((tiny_zoo / "zoo.json").read_text())["schema"]))
    weights = torch.randn(80, 100, generator=torch.Generator().manual_seed(0)).numpy()
    weights[:4] *= 1e25
    columns = {
        "model_id": [f"{row // 4:016x}" for row in range(80)],
        "epoch": [row % 4 for row in range(80)],
        "train_loss": [10.0 ** (3 - 2 * (row % 4)) if row > 3 else 1e25 for row in range(80)],
        "test_loss": [0.1 + row / 100 for row in range(80)],
        "weights": pa.FixedSizeListArray.from_arrays(pa.array(weights.reshape(-1)), 100),
    }
    pq.write_table(pa.table(columns), tmp_path / "population.parquet")
    out = tmp_path / "page.html"
    view(tmp_path / "population.parquet", "--schema", schema, "-o", out)
    with opened(browser, out) as page:
        page.select_option("#plane", label="PCA of the weights W")
        page.wait_for_function("document.getElementById('beyond').textContent")
        assert page.text_content("#beyond") == "4 checkpoints far beyond, drawn at the border"
        for axis in ("xaxis", "yaxis"):
            low, high = page.evaluate("(axis) => document.getElementById('map')._fullLayout[axis].range", axis)
            assert -100 < low < high < 100
        page.select_option("#colour", label="training loss")
        page.wait_for_selector("text=training loss (at the end: 1000 and more)")
        click_on(page, 0, 7)
        page.wait_for_selector("#model:not([hidden])")
        page.wait_for_selector("#loss .ytick text")
        assert page.locator("#loss .xtick text").all_text_contents() == ["0", "1", "2", "3"]
        assert page.locator("#loss .ytick text").all_text_contents() == [
            "0.001",
            "0.01",
            "0.1",
            "1",
            "10",
            "100",
            "1000",
        ]

        # Nothing is wider than the window, and on a telephone the picture comes before the filters.
        for width, height in ((390, 844), (1366, 768), (2560, 1300)):
            page.set_viewport_size({"width": width, "height": height})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
    telephone = browser.new_page(viewport={"width": 390, "height": 844})
    telephone.goto(out.as_uri())
    telephone.wait_for_selector("body[data-ready]", timeout=PATIENCE)
    box = telephone.locator("#map").bounding_box()
    assert box["y"] + box["height"] < 844
    assert not telephone.locator("#filters").is_visible()
    telephone.locator("summary").click()
    assert telephone.locator("#filters").is_visible()
    telephone.close()


def test_even_a_script_that_got_into_the_page_would_not_run(browser: Any, page_file: Path) -> None:
    page = browser.new_page()
    page.goto(page_file.as_uri(), timeout=PATIENCE)
    refused = page.evaluate(
        """async () => {
            const refused = new Promise((done) => addEventListener("securitypolicyviolation", done));
            const script = document.createElement("script");
            script.textContent = "window.harmed = 1";
            document.body.append(script);
            return (await refused).violatedDirective;
        }"""
    )
    assert refused == "script-src-elem"
    assert page.evaluate("window.harmed") is None
    page.close()


def data_of(page: Path) -> dict[str, Any]:
    """The JSON in a page."""
    text = page.read_text().split('<script type="application/json" id="data">')[1].split("</script>")[0]
    return dict(json.loads(text))


def unpacked(column: dict[str, str]) -> list[Any]:
    """An array as it is in the JSON of a page."""
    return list(np.frombuffer(base64.b64decode(column["data"]), f"<{column['type']}").tolist())


def test_the_scores_of_a_class_have_its_name(tiny_zoo: Path, tmp_path: Path) -> None:
    view(tiny_zoo, "-o", tmp_path / "view.html")
    columns = {column["title"]: column for column in data_of(tmp_path / "view.html")["columns"]}
    zoo = open_zoo(tiny_zoo)
    for number, letter in enumerate("IOTL"):
        values = unpacked(columns[f"F score of {letter}"]["values"])
        expected = [scores[number] for scores in zoo.metadata["test_f1"].to_pylist()]
        assert np.allclose(sorted(values), sorted(expected))
        assert not columns[f"F score of {letter}"]["filter"]


def test_large_seeds_keep_their_digits(tmp_path: Path) -> None:
    """JavaScript rounds whole numbers beyond 2^53."""
    seeds = [(1 << 53) + 1, (1 << 53) + 2, (1 << 62) + 1, (1 << 63) - 1]
    zoo = tmp_path / "zoo"
    build(parse_spec(TINY_ZOO | {"seeds": {"fixed": seeds}}, "test"), zoo, workers=1, quiet=True)
    view(zoo, "-o", tmp_path / "page.html")
    data = data_of(tmp_path / "page.html")
    (column,) = [column for column in data["columns"] if column["name"] == "seed"]
    assert sorted(column["digits"], key=int) == [str(seed) for seed in seeds]
    shown = [column["digits"][code] for code in unpacked(column["codes"])]
    table = Portrait.of(open_zoo(zoo, include_diverged=True), 50_000, whole_models=True).zoo.metadata
    assert shown == [str(seed) for seed in table["seed"].to_pylist()]
    assert column["choices"] == column["digits"]  # two of them are one float64, and still two choices
    (epoch,) = [column for column in data["columns"] if column["name"] == "epoch"]
    assert (epoch["whole"], unpacked(epoch["values"])) == (True, table["epoch"].to_pylist())
    assert "digits" not in epoch
    assert "seed" not in Portrait.of(open_zoo(zoo)).properties


def test_whole_numbers_of_others_and_missing_ones_keep_their_digits(tmp_path: Path) -> None:
    schema = build_schema(Mlp(name="mlp", hidden=(1,), bias=False), (1, 1, 1), 2)
    columns = {
        "weights": [[float(row), 1.0, 2.0] for row in range(20)],
        "hash": pa.array([None, *(2**64 - 1 - row for row in range(19))], pa.uint64()),
        "huge": [1.7e308, -1.7e308] * 10,
    }
    pq.write_table(pa.table(columns), tmp_path / "w.parquet")
    portrait = Portrait.of(open_zoo(tmp_path / "w.parquet", schema=schema), whole_models=True)
    points, method = flatten(portrait.zoo.weights() * 1e30, umap=False)
    made = page(portrait.with_plane("W", points * 1e15, method))
    (tmp_path / "page.html").write_bytes(made)
    data = data_of(tmp_path / "page.html")
    assert np.isfinite(unpacked(data["planes"][0]["x"])).all()
    (column,) = [column for column in data["columns"] if column["name"] == "hash"]
    digits = [*column["digits"], "unknown"]
    expected = ["unknown" if value is None else str(value) for value in portrait.zoo.metadata["hash"].to_pylist()]
    assert [digits[code] for code in unpacked(column["codes"])] == expected
    assert (column["choices"], column["filter"], column["colour"]) == (None, False, True)


WITHOUT = """
import sys
sys.modules["matplotlib"] = None
from zootools.cli import main
main(sys.argv[1:])
"""


def test_the_page_needs_no_matplotlib_and_pictures_say_that_they_do(tiny_zoo: Path, tmp_path: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", WITHOUT, *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)

    made = run("view", str(tiny_zoo), "--no-open", "--quiet", "-o", "page.html")
    assert (made.returncode, made.stderr) == (0, "")
    assert data_of(tmp_path / "page.html")["name"] == "tiny"
    refused = run("plot", str(tiny_zoo))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "zootools: zootools plot needs matplotlib: pip install 'zootools[plots]'\n"


@pytest.mark.parametrize("package", ["plotly", "umap"])
def test_a_missing_package_is_named_with_its_extra(
    tiny_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    words = ["view", str(tiny_zoo), "--umap", "--no-open", "-o", str(tmp_path / "page.html")]
    refused = CliRunner().invoke(main, words)
    assert refused.exit_code == 2
    assert f"needs {package}: pip install 'zootools[plots]'" in refused.stderr
    assert not (tmp_path / "page.html").exists()


def test_pictures_and_pages_of_a_library_user_name_what_is_missing(
    tiny_zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import zootools.plots

    portrait = Portrait.of(open_zoo(tiny_zoo))
    points, method = flatten(portrait.zoo.weights(), umap=False)
    for name in ("matplotlib", "plotly.offline"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SpecError, match=r"zootools\.plots\.write_pictures needs matplotlib: pip install"):
        _ = zootools.plots.write_pictures
    with pytest.raises(SpecError, match="the page of a zoo needs plotly: pip install"):
        page(portrait.with_plane("W", points, method))


def test_the_same_zoo_makes_the_same_page(tiny_zoo: Path, tmp_path: Path) -> None:
    for name in ("first.html", "second.html"):
        view(tiny_zoo, "-o", tmp_path / name)
    assert (tmp_path / "first.html").read_bytes() == (tmp_path / "second.html").read_bytes()


def test_a_page_in_the_zoo_is_verified_linked_published_and_gone_when_the_zoo_grows(
    look_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets import load_dataset

    zoo = shutil.copytree(look_zoo, tmp_path / "look")
    before = (zoo / "README.md").read_text()
    assert view(zoo, "--add")["file"] == str(zoo / "view.html")
    view(zoo, "--add")  # again, over the first
    assert list(faults(zoo)) == []
    assert not (zoo / ".work").exists()
    assert (zoo / "README.md").read_text() == before.replace("## Load", LINK + "## Load")

    publish(zoo, "group/look", hub=tmp_path / "hub")
    monkeypatch.setenv("ZOOTOOLS_HUB", str(tmp_path / "hub"))
    pull("group/look", tmp_path / "pulled")
    assert list(faults(tmp_path / "pulled")) == []
    assert (tmp_path / "pulled" / "view.html").read_bytes() == (zoo / "view.html").read_bytes()
    rows = load_dataset(str(tmp_path / "hub" / "group" / "look"), "metadata", cache_dir=str(tmp_path / "cache"))
    assert sum(map(len, rows.values())) == read_manifest(zoo).counts.checkpoints
    refusal = CliRunner().invoke(main, ["view", "group/look", "--add", "--no-open"])
    assert (refusal.exit_code, "published version" in refusal.stderr) == (2, True)
    assert view("group/look", "-o", tmp_path / "by-name.html")["checkpoints"] == 120

    build(parse_spec(LOOK_ZOO | {"seeds": {"range": [1, 7]}}, "test"), zoo, workers=1, quiet=True)
    assert not (zoo / "view.html").exists()
    assert list(faults(zoo)) == []


LINK = """
[view.html](view.html) is an interactive page of this zoo: download it and open it in a browser. It needs no network.

"""


def test_the_colours_of_rates_are_logarithmic(tmp_path: Path) -> None:
    zoo = tmp_path / "zoo"
    grid = TINY_ZOO["grid"] | {"lr": [0.1, 0.2, 0.4]}
    build(parse_spec(TINY_ZOO | {"grid": grid, "seeds": {"fixed": [1]}}, "test"), zoo, workers=1, quiet=True)
    view(zoo, "-o", tmp_path / "page.html")
    log = {column["name"]: column.get("log") for column in data_of(tmp_path / "page.html")["columns"]}
    assert (log["lr"], log["epoch"], log["test_accuracy"]) == (True, False, False)
