"""Conditions on metadata as text."""

import re

import pyarrow as pa
import pytest

from zootools.conditions import MAX_LENGTH, parse_condition
from zootools.errors import SpecError

ROWS = [
    {"epoch": 0, "lr": 0.1, "activation": "relu", "kept": True, "f1": [0.5], "split": "train"},
    {"epoch": 25, "lr": 0.01, "activation": "tanh", "kept": False, "f1": [0.5], "split": "test"},
    {"epoch": 50, "lr": None, "activation": "größe 'x'", "kept": None, "f1": [0.5], "split": "test"},
]
COLUMNS = pa.schema(
    {
        "epoch": pa.int32(),
        "lr": pa.float64(),
        "activation": pa.string(),
        "kept": pa.bool_(),
        "f1": pa.list_(pa.float64()),
        "split": pa.string(),
    }
)


@pytest.mark.parametrize(
    ("text", "epochs"),
    [
        ("epoch == 25", [25]),
        ("epoch != 25", [0, 50]),
        ("25 <= epoch", [25, 50]),
        ("0 < epoch < 50", [25]),
        ("epoch < 24.5", [0]),
        ("epoch > -1", [0, 25, 50]),
        ("lr > 1e-2 or epoch == 50", [0, 50]),
        ("not lr > 1e-2", [25]),
        ("lr is null", [50]),
        ("lr is not null and epoch in [25, 50]", [25]),
        ("epoch not in (0, 25)", [50]),
        ("activation == \"größe 'x'\" and epoch > 1", [50]),
        ("activation in ['relu', 'tanh'] and not (epoch == 0 or epoch == 1)", [25]),
        ("kept", [0]),
        ("not kept", [25]),
        ("kept == false or kept is null", [25, 50]),
        ("epoch > lr", [25]),
        ("split in ['test', 'validation'] and 'train' != split", [25, 50]),
        ("activation == 'rellu'", []),  # another zoo may have it
        ("  epoch\n== 0\n", [0]),
    ],
)
def test_a_condition_selects_the_rows_for_which_it_holds(text: str, epochs: list[int]) -> None:
    table = pa.Table.from_pylist(ROWS, COLUMNS)
    assert table.filter(parse_condition(text, COLUMNS))["epoch"].to_pylist() == epochs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epcoh == 25", "character 1: found 'epcoh'; expected a column, or a text in quotes; did you mean 'epoch'?"),
        ("epoch == 1 and activation == relu", "character 30: found 'relu'; expected a column, or a text in quotes"),
        ("activation > 1", "character 14: found '1'; it is of type number, but activation of type text"),
        ("'größe' == lr", "character 12: found 'lr'; it is of type number, but 'größe' of type text"),
        ("epoch in [1, 'a']", "character 14: found \"'a'\"; it is of type text, but epoch of type number"),
        ("epoch == true", "character 10: found 'true'; it is of type bool, but epoch of type number"),
        ("split == 'tset'", "character 10: found \"'tset'\"; expected a split; did you mean 'test'?"),
        (
            "split in ['train', 'dev']",
            "character 20: found \"'dev'\"; expected a split; allowed: test, train, validation",
        ),
        ("kept > false", "bool are compared by == and != only"),
        ("f1 > 0.5", "character 1: found 'f1'; values of type list<item: double> cannot be compared"),
        ("epoch", "found 'epoch'; expected a comparison, or a column of type bool"),
        ("true", "expected a comparison"),
        ("1 < 2", "expected a column on one side"),
        ("epoch in 5", "character 10: found '5'; expected a list of values after in"),
        ("epoch in []", "expected a list of values"),
        ("epoch is 5", "expected null after is"),
        ("(epoch == 1) & (lr == 1)", "conditions are joined by and, or, not"),
        ("epoch = 1", "character 7: found '= 1'; expected a condition such as"),
        ("  epoch == 'a", 'character 12: found "\'a"; expected a condition such as'),
        ("", "character 1: found nothing; expected a condition such as"),
        ("epoch == 1 AND lr == 2", "found 'AND lr == 2'"),
        ("epoch == 9223372036854775808", "expected a column, a number below 2**63"),
        ("epoch == 1j", "found '1j'"),
        ("epoch == b'1'", "found \"b'1'\""),
        ("epoch == f'{lr}'", "expected a column, a number"),
        ("__import__('os').system('true')", "expected a condition such as"),
        ("epoch == __import__('os')", "expected a column, a number"),
        ("epoch.x == 1", "found 'epoch.x'"),
        ("[x for x in epoch]", "expected a condition such as"),
        ("(epoch := 1)", "expected a condition such as"),
        ("epoch == 1\0", "a condition such as"),
        ("not " * 100 + "kept", "at most 20 levels"),
        ("-" * 900 + "1 == epoch", "expected a column, a number"),
        ("(" * 900 + "kept" + ")" * 90, "expected a condition such as"),
        ("kept or " * 1000 + "kept", f"found 8,004 characters; expected at most {MAX_LENGTH:,}"),
    ],
)
def test_what_is_not_a_condition_is_refused_with_its_position(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
        parse_condition(text, COLUMNS)
