"""Backends as a user may write them: none of these classes inherits from one of zootools."""

import importlib
import os
from typing import Any


class Own:
    """Has what a backend has, and trains with PyTorch."""

    device = "cpu"
    name = "own"
    reason = "as a test wants it"

    def fingerprint(self) -> dict[str, object]:
        return {"backend": "own", "version": 1}

    def trainers(self, schema: Any, models: Any, images: Any, training: Any) -> Any:
        from zootools.training.stacked import StackedTrainer

        rest = (images, training.batch_size, training.train_metrics_images)
        return [StackedTrainer(schema, models[first : first + 256], *rest) for first in range(0, len(models), 256)]


class Toy(Own):
    """Has what a backend of the table has too."""

    name = "toy"

    def fingerprint(self) -> dict[str, object]:
        return {"backend": "toy"}

    def width(self, schema: Any) -> int:
        return 256


class Faulty(Own):
    """Cannot train."""

    def trainers(self, *_: Any) -> Any:
        raise ZeroDivisionError("out of\norder")


class Hungry(Own):
    """Wants more memory than there is."""

    def trainers(self, *_: Any) -> Any:
        raise MemoryError


class Homesick(Own):
    """Cannot be unpickled anywhere but where it was made."""

    def __reduce__(self) -> Any:
        return importlib.import_module, ("only_installed_on_another_machine",)


class Mute(Own):
    """Lacks a method and a text."""

    reason = None  # type: ignore[assignment]
    trainers = None  # type: ignore[assignment]


class Stuck(Own):
    """Cannot be pickled."""

    def __init__(self) -> None:
        self.key = lambda: None


class Vague(Own):
    """Its fingerprint cannot be stored."""

    def fingerprint(self) -> dict[str, object]:
        return {"process": os.getpid, "share": float("nan")}


BACKENDS = {backend.__name__.lower(): backend() for backend in (Own, Faulty, Hungry, Homesick)}
