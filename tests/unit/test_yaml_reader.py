"""The YAML reader: numbers are numbers, surprises are refused, and every refusal has its line."""

import contextlib
import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from zootools.errors import SpecError
from zootools.spec.yaml_reader import MAX_BYTES, MAX_NODES, parse_scalar, parse_yaml, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1.0e-3", 1e-3),
        ("3E5", 3e5),
        (".5", 0.5),
        ("5.", 5.0),
        ("-7", -7),
        ("010", 10),
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("", None),
    ],
)
def test_plain_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    found = parse_scalar(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "text", ["no", "yes", "on", "off", "True", "2024-01-01", "1_000", "0x10", "12:30", ".nan", ".inf"]
)
def test_what_yaml_1_1_would_convert_stays_a_word(text: str) -> None:
    assert parse_yaml(f"key: {text}", "x")[0] == {"key": text}


def test_quotes_keep_a_number_a_word() -> None:
    assert parse_yaml("a: '1'\nb: \"1e-3\"\nc: 'null'", "x")[0] == {"a": "1", "b": "1e-3", "c": "null"}


def test_every_value_knows_its_line() -> None:
    values, places = parse_yaml("a:\n  b: [1,\n    2]\nc: x\n", "s.yaml")
    assert values == {"a": {"b": [1, 2]}, "c": "x"}
    assert places["a", "b"] == "s.yaml:2"
    assert places["a", "b", 1] == "s.yaml:3"
    assert places["c",] == "s.yaml:4"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "s.yaml:3: duplicate key 'a'"),
        ("x: {a: 1, a: 2}", "s.yaml:1: duplicate key 'a'"),
        ("a: &anchor [1]\nb: *anchor\n", "s.yaml:2: aliases (*anchor) are not allowed"),
        ("a: {b: 1}\n<<: *a\n", "s.yaml:2: aliases (*a) are not allowed"),
        ("a: 1\nb: !!python/object/apply:os.system [x]\n", "s.yaml:2: tags ("),
        ("a: !!str 1\n", "s.yaml:1: tags ("),
        ("a: !own x\n", "s.yaml:1: tags ("),
        ("a: " + "[" * 21 + "]" * 21, "s.yaml:1: nested deeper than 20 levels"),
        ("a: " + "[" * 100_000, "s.yaml:1: nested deeper than 20 levels"),
        ("a: " + "{a: " * 5_000, "s.yaml:1: nested deeper than 20 levels"),
        ("a: [" + "1," * MAX_NODES + "1]", f"s.yaml:1: more than {MAX_NODES} values"),
        ("a: 1\nb: 1e999\n", "s.yaml:2: b: 1e999 is too large"),
        ("a: 1\n? [x]\n: 1\n", "s.yaml:2: a key must be a word"),
        ("a: b: c\n", "s.yaml:1:5: not valid YAML"),
        ("a: [1\n", "s.yaml:2:1: not valid YAML"),
        ("a: 1\n---\nb: 2\n", "not valid YAML"),
        ("a: \x00", "s.yaml: not valid YAML"),
    ],
)
def test_surprises_are_refused_with_their_line(text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_yaml(text, "s.yaml")
    assert message in str(caught.value)


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_bytes(b"name: \xe9t\xe9\n")
    with pytest.raises(SpecError, match="not UTF-8 text"):
        read_yaml(path)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: x\r\n")
    assert read_yaml(path)[0] == {"name": "x"}


def test_missing_files_folders_and_huge_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"none.yaml: cannot be read \(No such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(SpecError, match="cannot be read"):
        read_yaml(tmp_path)
    (tmp_path / "large.yaml").write_bytes(b"a" * (MAX_BYTES + 1))
    with pytest.raises(SpecError, match="larger than"):
        read_yaml(tmp_path / "large.yaml")


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_but_never_crashes(text: str) -> None:
    with contextlib.suppress(SpecError):
        parse_yaml(text, "s.yaml")


_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(codec="ascii", min_codepoint=32), max_size=20),
)
_names = st.from_regex(r"[a-z]{1,8}", fullmatch=True)
_plain = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_names, inner, max_size=4),
    max_leaves=20,
)


@given(_plain)
def test_what_pyyaml_dumps_is_read_back(value: object) -> None:
    class NoAliases(yaml.SafeDumper):
        def ignore_aliases(self, data: object) -> bool:
            return True

    found = parse_yaml(yaml.dump({"key": value}, Dumper=NoAliases), "x")[0]
    assert _equal(found, {"key": value})


def _equal(found: object, expected: object) -> bool:
    if isinstance(expected, dict):
        return (
            isinstance(found, dict)
            and list(found) == sorted(expected)
            and all(_equal(found[k], expected[k]) for k in found)
        )
    if isinstance(expected, list):
        return isinstance(found, list) and len(found) == len(expected) and all(map(_equal, found, expected))
    if isinstance(expected, float):
        return isinstance(found, float) and math.isclose(found, expected)
    return found == expected and type(found) is type(expected)
