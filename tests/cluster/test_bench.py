"""The benchmark on a Ray cluster."""

from pathlib import Path

from representation import bench, make_task
from zootools import open_zoo


def test_rows_from_a_cluster_are_those_of_this_machine(tiny_zoo: Path, tmp_path: Path) -> None:
    zoo = open_zoo(tiny_zoo)
    task, found = make_task(zoo, "test_accuracy", metric="r2"), []
    for engine in ("local", "ray"):
        results = bench([task], ["W", "MLP"], [zoo], seeds=2, out=tmp_path / engine, engine=engine, quiet=True).results
        found.append([row.model_dump(exclude={"fit_seconds", "predict_seconds", "peak_bytes"}) for row in results])
    assert len(found[0]) == 3
    assert found[0] == found[1]
