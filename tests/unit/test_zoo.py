"""Reading a zoo in Python: selections, data sets, columns."""

from pathlib import Path

import pytest

from zootools import open_zoo
from zootools.errors import SpecError


def test_a_condition_as_text_selects_checkpoints(tiny_zoo: Path) -> None:
    zoo = open_zoo(tiny_zoo)
    rows = zoo.metadata.to_pylist()
    expected = [(row["model_id"], 2) for row in rows if row["epoch"] == 2 and row["test_accuracy"] > 0.3]
    assert 0 < len(expected) < len(rows)
    for chosen in (
        zoo.where("test_accuracy > 0.3 and epoch == 2"),
        open_zoo(tiny_zoo, where="0.3 < test_accuracy and 2 == epoch"),
    ):
        table = chosen.metadata
        assert list(zip(table["model_id"].to_pylist(), table["epoch"].to_pylist(), strict=True)) == expected
    with pytest.raises(SpecError, match=r"character 1: found 'acuracy'; .*did you mean 'test_accuracy'"):
        zoo.where("acuracy > 0.5")
