"""Specifications: the bundled ones hold what the paper says, and every fault is named with its place."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from samples import SPEC_TEXT, make_spec

from zootools.building.planning import check_spec
from zootools.bundled import bundled_specs, find_spec
from zootools.errors import SpecError
from zootools.spec import MAX_MODELS, Mlp, ZooSpec, load_spec, parse_spec
from zootools.spec.images import TRAINING_IMAGES
from zootools.spec.json_schema import specification_schema
from zootools.spec.model_configs import expand
from zootools.spec.population import Grid, Sample, Seeds
from zootools.spec.yaml_reader import read_yaml
from zootools.starter import write_starter
from zootools.storage.finish import spec_yaml

WriteSpec = Callable[..., Path]

MODELS = {
    "tetris_seed": 1000,
    "tetris_hyp": 3600,
    "mnist_seed": 1000,
    "fashion_seed": 1000,
    "svhn_seed": 1000,
    "mnist_hyp_1_fix": 1152,
    "mnist_hyp_1_rand": 1152,
    "mnist_hyp_5_fix": 1280,
    "mnist_hyp_5_rand": 1280,
    "mnist_hyp": 30_000,
    "fashion_hyp": 30_000,
    "cifar10_hyp": 30_000,
    "svhn_hyp": 30_000,
    "digits_seed": 100,
    "digits_hyp": 192,
    "mnist_uniform_2022": 1000,
    "svhn_uniform_2022": 1000,
}


def test_the_bundled_specifications_are_those_that_are_documented() -> None:
    assert set(bundled_specs()) == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_a_bundled_specification_is_valid_and_makes_the_number_of_models_it_should(name: str) -> None:
    spec = load_spec(find_spec(name))
    assert spec.name == name
    assert spec.description
    assert spec.model_count == MODELS[name]


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("tetris")])
def test_tetris_zoos_are_trained_75_epochs(name: str) -> None:
    assert load_spec(find_spec(name)).training.kept_epochs == tuple(range(76))


@pytest.mark.parametrize("name", ["mnist_hyp", "fashion_hyp", "cifar10_hyp", "svhn_hyp"])
def test_unterthiner_zoos_keep_the_published_epochs(name: str) -> None:
    assert load_spec(find_spec(name)).training.kept_epochs == (0, 1, 2, 3, 20, 40, 60, 80, 86)


def test_an_unknown_bundled_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(SpecError, match=r"mnist_sed: no such file or bundled .*did you mean 'mnist_seed'\?"):
        find_spec("mnist_sed")


@pytest.mark.parametrize("name", MODELS)
def test_a_dumped_specification_is_read_back_equal(name: str) -> None:
    spec = load_spec(find_spec(name))
    assert parse_spec(spec.dump(), "dump") == spec


def test_numbers_without_a_point_are_numbers(write_spec: WriteSpec) -> None:
    assert load_spec(write_spec(("[1.0e-3, 1.0e-4]", "[1e-3, 1]"))).grid.lr == (1e-3, 1.0)


@pytest.mark.parametrize(
    ("change", "line", "message"),
    [
        (("optimizer:", "optimiser:"), 7, "grid.optimiser: unknown key; did you mean 'optimizer'?"),
        (("grid:", "gird:"), 4, "gird: unknown key; did you mean 'grid'?"),
        (("size: 28", "sise: 28"), 2, "images.sise: unknown key; did you mean 'size'?"),
        (("cnn_small", "cnn_smal"), 3, "architecture.name: found 'cnn_smal'; did you mean 'cnn_small'?"),
        (("digits", "digit"), 2, "images.name: found 'digit'; did you mean 'digits'?"),
        (("[tanh, relu]", "[tanh, rely]"), 5, "grid.activation.1: found 'rely'; did you mean 'relu'?"),
        (("[tanh, relu]", "{choice: [tanh]}"), 5, "grid.activation: found the section {'choice': ['tanh']}; write act"),
        (("[tanh, relu]", "tahn"), 5, "grid.activation.0: found 'tahn'; did you mean 'tanh'?"),
        (("{fixed: [1, 2]}", "ten"), 9, "seeds: found the text 'ten'; write seeds: 10, seeds: [1, 2, 3] or seeds: {r"),
        (("{fixed: [1, 2]}", "0"), 9, "seeds: found the number 0; write seeds: 10, "),
        (("{fixed: [1, 2]}", "true"), 9, "seeds: found true; write seeds: 10, "),
        (("{fixed: [1, 2]}", "{range: 10}"), 9, "seeds.range: found the number 10; write range: [1, 10]"),
        (("{fixed: [1, 2]}", "{range: [1]}"), 9, "seeds.range: found the list [1]; write range: [1, 10]"),
        (("{fixed: [1, 2]}", "{range: [1, 2, 3]}"), 9, "seeds.range: found the list [1, 2, 3]; write range: [1, 10]"),
        (("{name: cnn_small}", "[cnn_small]"), 3, "architecture: found the list ['cnn_small']; write archit"),
        (("{name: cnn_small}", "cnn_smal"), 3, "architecture.name: found 'cnn_smal'; did you mean 'cnn_small'?"),
        (("{name: digits, train: 100, size: 28}", "3"), 2, "images: found the number 3; write images: mnist or image"),
        (("{epochs: 5, batch_size: 10}", "5"), 10, "training: found the number 5; write training: {epochs: 10, batch"),
        (("[adam]", "[no]"), 7, "grid.optimizer.0: found 'no'; allowed: adam, rmsprop, sgd"),
        (("[adam]", "[adam, adam]"), 4, "grid: optimizer: duplicate value 'adam'"),
        (("[adam]", "[]"), 7, "grid.optimizer: found []"),
        (("[1.0e-3, 1.0e-4]", "[.nan]"), 8, "grid.lr.0: found '.nan'; input should be a valid number"),
        (("[1.0e-3, 1.0e-4]", "[-1]"), 8, "grid.lr.0: found -1; input should be greater than 0"),
        (("[1.0e-3, 1.0e-4]", "['1']"), 8, "grid.lr.0: found '1'; input should be a valid number"),
        (("[1.0e-3, 1.0e-4]", "[true]"), 8, "grid.lr.0: found True; input should be a valid number"),
        (("epochs: 5", "epochs: true"), 10, "training.epochs: found True; input should be a valid integer"),
        (("epochs: 5", "epochs: 5.0"), 10, "training.epochs: found 5.0; input should be a valid integer"),
        (("epochs: 5", "epochs: '5'"), 10, "training.epochs: found '5'; input should be a valid integer"),
        (("epochs: 5", "epochs: 0"), 10, "training.epochs: found 0; input should be greater than or equal to 1"),
        (("epochs: 5, ", ""), 10, "training.epochs: is missing"),
        (("size: 28", "greyscale: no"), 2, "images.greyscale: found 'no'; input should be a valid boolean"),
        (("size: 28", "mean: x"), 2, "images.mean: found 'x'; input should be a valid number"),
        (("size: 28", "std: [1, 0]"), 2, "images.std.1: found 0; input should be greater than 0"),
        (("size: 28", "normalise: auto, std: 1"), 2, "normalise: auto computes mean and std; remove std, or normalise"),
        (("name: example", "name: example\nhomepage: ftp://x"), 2, "homepage: found 'ftp://x', which does not match"),
        (("name: example", "name: example\nauthors: Ada"), 2, "authors: found the text 'Ada'; write authors: [Ada"),
        (("size: 28", "std: 0"), 2, "images.std: found 0; input should be greater than 0"),
        (("{fixed: [1, 2]}", "{fixed: [1], range: [1, 2]}"), 9, "expected exactly one of range, fixed and random"),
        (("{fixed: [1, 2]}", "{fixed: [1, 1]}"), 9, "fixed: duplicate seed 1"),
        (("{fixed: [1, 2]}", "{range: [2, 1]}"), 9, "expected [first, last]"),
        (("{fixed: [1, 2]}", "{random: {per_configuration: 5, low: 1, high: 4}}"), 9, "are fewer than 5 seeds"),
        (("name: example", "name: ../up"), 1, "name: found '../up', which does not match"),
    ],
)  # fmt: skip
def test_a_fault_is_named_with_line_key_and_what_is_allowed(
    write_spec: WriteSpec, change: tuple[str, str], line: int, message: str
) -> None:
    path = write_spec(change)
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    lines = str(caught.value).splitlines()
    assert any(text.startswith(f"{path}:{line}: ") and message in text for text in lines), lines


SHORT_FORMS = [
    (("{name: cnn_small}", "cnn_small"), ()),
    (("[adam]", "adam"), ()),
    (("[1.0e-3, 1.0e-4]", "1e-3"), ("[1.0e-3, 1.0e-4]", "[1.0e-3]")),
    (("{fixed: [1, 2]}", "[1, 2]"), ()),
    (("{fixed: [1, 2]}", "10"), ("{fixed: [1, 2]}", "{range: [1, 10]}")),
    (("{name: digits, train: 100, size: 28}", "mnist"), ("digits, train: 100, size: 28", "mnist, train: 60000")),
    (("{name: digits, train: 100, size: 28}", "cifar10"), ("digits, train: 100, size: 28", "cifar10, train: 50000")),
]
"""A change to `SPEC_TEXT` that writes a short form, and the change that writes its long form; () for none."""


@pytest.mark.parametrize(("short", "long"), SHORT_FORMS)
def test_a_short_form_is_read_as_its_long_form(
    write_spec: WriteSpec, short: tuple[str, str], long: tuple[str, str] | tuple[()]
) -> None:
    """Ids, and the spec.yaml of a zoo, are those of the long form."""
    expected = load_spec(write_spec(long) if long else write_spec())
    found = load_spec(write_spec(short))
    assert found == expected
    assert spec_yaml(found) == spec_yaml(expected)
    assert expand(found) == expand(expected)


def test_an_override_of_a_short_form_is_one_of_its_long_form(write_spec: WriteSpec) -> None:
    path = write_spec(("{name: cnn_small}", "mlp"), ("{name: digits, train: 100, size: 28}", "mnist"))
    overrides = ["architecture.hidden=[5]", "images.train=50", "seeds=3", "grid.lr=0.1", "grid.init=normal"]
    spec = load_spec(path, overrides)
    assert (spec.architecture, spec.images.train) == (Mlp(name="mlp", hidden=(5,)), 50)
    assert (spec.seeds.range, spec.grid.lr, spec.grid.init) == ((1, 3), (0.1,), ("normal",))
    assert load_spec(path, [*overrides, "seeds=[7, 9]", "architecture=cnn_large"]).seeds.fixed == (7, 9)


def test_what_an_error_says_to_write_is_accepted() -> None:
    """Every example of a key is a valid value of it, in the text of an error and in the JSON schema."""
    checked = 0
    for section, place in ((ZooSpec, ()), (Grid, ("grid",)), (Seeds, ("seeds",)), (Sample, ("sample",))):
        for key, field in section.model_fields.items():
            for example in field.examples or ():
                values = make_spec().dump()
                if place == ("sample",):
                    values["grid"].pop(key, None)
                    values["sample"] = {"count": 2, key: example}
                elif place:
                    values[place[0]] = {key: example} if place == ("seeds",) else values[place[0]] | {key: example}
                else:
                    values["grid"].pop("lr") if key == "sample" else None
                    values[key] = example
                parse_spec(values, f"{section.__name__}.{key}")
                checked += 1
    assert checked > 40


# --- the JSON schema --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def schema() -> Any:
    found = specification_schema()
    jsonschema.Draft202012Validator.check_schema(found)
    return jsonschema.Draft202012Validator(found)


def test_the_json_schema_accepts_every_bundled_specification_and_short_form(schema: Any, write_spec: WriteSpec) -> None:
    paths = [*bundled_specs().values(), write_spec()]
    assert {path: [error.message for error in schema.iter_errors(read_yaml(path)[0])] for path in paths} == {
        path: [] for path in paths
    }
    for short, _ in SHORT_FORMS:
        assert list(schema.iter_errors(read_yaml(write_spec(short))[0])) == []


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (("optimizer:", "optimiser:"), ["grid"]),
        (("cnn_small", "cnn_smal"), ["architecture"]),
        (("[adam]", "adm"), ["grid", "optimizer"]),
        (("[1.0e-3, 1.0e-4]", "[-1]"), ["grid", "lr"]),
        (("{fixed: [1, 2]}", "ten"), ["seeds"]),
        (("epochs: 5", "epochs: 0"), ["training", "epochs"]),
        (("size: 28", "sise: 28"), ["images"]),
    ],
)
def test_the_json_schema_refuses_a_wrong_value_at_its_place(
    schema: Any, write_spec: WriteSpec, change: tuple[str, str], place: list[str]
) -> None:
    errors = list(schema.iter_errors(read_yaml(write_spec(change))[0]))
    assert [list(error.absolute_path) for error in errors] == [place]


def test_all_faults_are_named_at_once(write_spec: WriteSpec) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(write_spec(("epochs: 5", "epochs: x"), ("size: 28", "sise: 28"), ("[adam]", "[adm]")))
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("addition", "message"),
    [
        ("name: twice\n", "duplicate key 'name'"),
        ("description: *a\n", "aliases (*a) are not allowed"),
        ("description: !!str x\n", "tags ("),
        ("description: " + "[" * 50 + "\n", "nested deeper"),
        ("description: x\n  y: z\n", "not valid YAML"),
    ],
)
def test_yaml_surprises_are_refused_with_their_line(write_spec: WriteSpec, addition: str, message: str) -> None:
    path = write_spec(text=SPEC_TEXT + addition)
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert str(caught.value).startswith(f"{path}:1")
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1, 2]", "word"])
def test_a_document_other_than_a_mapping_is_refused(write_spec: WriteSpec, text: str) -> None:
    with pytest.raises(SpecError, match="expected a mapping of keys"):
        load_spec(write_spec(text=text))


@pytest.mark.timeout(120)  # to count them one by one would take hours
def test_a_grid_of_a_million_million_models_is_refused_with_its_count() -> None:
    values = [i / 10_000 for i in range(10_000)]
    grid = {"activation": ["tanh"], "init": ["normal"], "optimizer": ["adam"], "lr": [v + 1 for v in values]}
    with pytest.raises(SpecError, match=r"make 1,000,000,000,000 models; at most 1,000,000 are allowed"):
        make_spec(grid={**grid, "weight_decay": values, "dropout": values}, seeds={"fixed": [1]})


def test_a_range_of_seeds_beyond_the_limit_is_refused_with_its_count() -> None:
    with pytest.raises(SpecError, match=f"make {8 * (MAX_MODELS + 1):,} models"):
        make_spec(seeds={"range": [0, MAX_MODELS]})


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"count": 3, "lr": {"uniform": [0.1, 0.2]}}, "lr is in both grid and sample"),
        ({"count": 3, "l2": {"uniform": [0.1, 200.0]}}, "sample.l2: found 200.0"),
        ({"count": 3, "dropout": {"choice": ["much"]}}, "sample.dropout: found 'much'"),
        ({"count": 3, "l2": {"uniform": [0.2, 0.1]}}, "expected [low, high] with low < high"),
        ({"count": 3, "l2": {"log_uniform": [0.0, 0.1]}}, "expected 0 < low < high"),
        ({"count": 3, "l2": {}}, "expected exactly one of uniform, log_uniform and choice"),
    ],
)
def test_a_sample_that_could_leave_its_axis_is_refused(sample: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        make_spec(sample=sample)
    assert message in str(caught.value)


def test_an_axis_that_every_model_needs_must_be_in_grid_or_sample() -> None:
    grid = {"activation": ["tanh"], "init": ["normal"], "optimizer": ["adam"]}
    with pytest.raises(SpecError, match=r"grid\.lr is missing"):
        make_spec(grid=grid)
    assert make_spec(grid=grid, sample={"count": 3, "lr": {"uniform": [0.1, 0.2]}}).model_count == 6


def test_shares_of_the_split_must_make_one() -> None:
    with pytest.raises(SpecError, match=r"must be 1, found 0\.9"):
        make_spec(split={"train": 0.6, "validation": 0.15, "test": 0.15})


def test_checkpoints_are_kept_as_told_and_the_last_one_always() -> None:
    training = {"epochs": 7, "batch_size": 1}
    assert make_spec(training=training).training.kept_epochs == tuple(range(8))
    assert make_spec(training={**training, "checkpoint_every": 3}).training.kept_epochs == (0, 3, 6, 7)
    assert make_spec(training={**training, "checkpoint_epochs": [1, 9]}).training.kept_epochs == (1, 7)
    with pytest.raises(SpecError, match="increasing"):
        make_spec(training={**training, "checkpoint_epochs": [2, 1]})


# --- --set ------------------------------------------------------------------------------------------


def test_overrides_replace_and_add_values(write_spec: WriteSpec) -> None:
    overrides = ["training.epochs=9", "grid.lr=[1e-2]", "images={name: digits, train: 50, size: 28}", "models=3"]
    spec = load_spec(write_spec(), [*overrides, "split.group_by=configuration"])
    assert (spec.training.epochs, spec.grid.lr, spec.images.train, spec.models) == (9, (1e-2,), 50, 3)
    assert spec.split.group_by == "configuration"


def test_a_later_override_wins(write_spec: WriteSpec) -> None:
    assert load_spec(write_spec(), ["training.epochs=9", "training.epochs=4"]).training.epochs == 4


def test_a_specification_is_read_by_its_path_as_text_or_refused(write_spec: WriteSpec) -> None:
    path = write_spec()
    assert load_spec(str(path)) == load_spec(path)
    with pytest.raises(SpecError, match=r"^tetris_seed: cannot be read"):
        load_spec("tetris_seed")
    with pytest.raises(SpecError, match="expected the path of a YAML file, found NoneType"):
        load_spec(None)  # type: ignore[arg-type]


def test_an_override_to_null_takes_an_optional_value_away(write_spec: WriteSpec) -> None:
    assert load_spec(write_spec(), ["models=3", "models=null"]).models is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epochs", "expected KEY=VALUE"),
        ("=3", "expected KEY=VALUE"),
        ("training..epochs=3", "expected KEY=VALUE"),
        ("name.x=3", "name is not a section, it holds 'example'"),
        ("training.epochs=x", "--set training.epochs=x: training.epochs: found 'x'; input should be a valid integer"),
        ("training.epochs=", "training.epochs: found None"),
        ("training.epochs=1e999", "training.epochs: found inf"),
        ("training.epocs=3", "--set training.epocs=3: training.epocs: unknown key; did you mean 'epochs'?"),
        ("trainin.epochs=3", "trainin: unknown key; did you mean 'training'?"),
        ("grid.lr=[1, x]", "--set grid.lr=[1, x]: grid.lr.1: found 'x'"),
        ("grid.lr=[", "not valid YAML"),
        ("grid.lr=[&a 1, *a]", "aliases"),
        ("images={name: digits, size: 28}", "images.train: is missing"),
    ],
)
def test_a_wrong_override_is_named_as_the_command_line_had_it(
    write_spec: WriteSpec, override: str, message: str
) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(write_spec(), [override])
    assert message in str(caught.value)


def test_checking_a_specification_imports_no_torch() -> None:
    code = (
        "import sys; from zootools.bundled import find_spec; from zootools.spec import load_spec;"
        "from zootools.spec.model_configs import expand; expand(load_spec(find_spec('tetris_seed')));"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- zootools.starter -------------------------------------------------------------------------------


@pytest.mark.parametrize("images", ["tetris", *TRAINING_IMAGES])
def test_a_starter_is_valid_for_every_image_set(images: str, tmp_path: Path) -> None:
    """Its models fit the images, by the published numbers where there are no files."""
    path = write_starter(f"my_{images}", images, tmp_path, tmp_path)
    spec = load_spec(path)
    assert (path.name, spec.name, spec.images.name) == (f"my_{images}.yaml", f"my_{images}", images)
    check_spec(spec, tmp_path)
    assert spec.model_count == 16


def test_a_starter_overwrites_nothing_and_refuses_odd_words(tmp_path: Path) -> None:
    path = write_starter("12.yaml", "digits", folder=tmp_path)  # a name that YAML reads as a number
    assert load_spec(path).name == "12"
    path.write_text("mine")
    for name, images, message in (
        ("12", "digits", r"12\.yaml: exists already"),
        ("a/b", "digits", r"name: found 'a/b'; expected at most 100 letters"),
        ("a: b", "digits", r"name: found 'a: b'"),
        ("new", "mnits", r"images: found 'mnits'; did you mean 'mnist'\?.*or the name of a folder of pictures in"),
        ("new", "..", r"images: found '\.\.'"),
    ):
        with pytest.raises(SpecError, match=message):
            write_starter(name, images, tmp_path, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["12.yaml"]
    assert path.read_text() == "mine"
