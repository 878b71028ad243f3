"""Build, publish and learn from model zoos: populations of neural networks with every checkpoint kept.

The public names are imported on first use, so that ``import zootools`` (and ``zootools --help``)
does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from zootools.errors import ZooError

if TYPE_CHECKING:
    from zootools.architectures.own import register_architecture
    from zootools.building.builder import build
    from zootools.importers.export import export_zoo
    from zootools.importers.importing import import_zoo
    from zootools.open import open_zoo
    from zootools.spec import ZooSpec, load_spec
    from zootools.zoo import Zoo

__version__ = "0.1.0"
__all__ = [
    "Zoo",
    "ZooError",
    "ZooSpec",
    "__version__",
    "build",
    "export_zoo",
    "import_zoo",
    "load_spec",
    "open_zoo",
    "register_architecture",
]

_HOME = {
    "Zoo": "zootools.zoo",
    "ZooSpec": "zootools.spec",
    "build": "zootools.building.builder",
    "export_zoo": "zootools.importers.export",
    "import_zoo": "zootools.importers.importing",
    "load_spec": "zootools.spec",
    "open_zoo": "zootools.open",
    "register_architecture": "zootools.architectures.own",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'zootools' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
