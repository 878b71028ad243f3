"""A piece of work of the benchmark: one row that is to be computed."""

from dataclasses import dataclass

from representation.benchmark.methods.method import Method


@dataclass(frozen=True)
class Work:
    """A method on a task with a seed."""

    task: str
    kind: type[Method]
    seed: int

    def __str__(self) -> str:
        return f"{self.task}, {self.kind.name}, seed {self.seed}"
