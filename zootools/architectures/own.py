"""Architectures that users add, without a change of this package.

`register_architecture` decorates a function in the user's own code. It applies to the process that runs it: workers get
the layers, not the name, so a script needs nothing else. The command line finds the functions of installed packages by
their entry points. Neither a specification nor a zoo can name code, and reading a zoo calls none: zoo.json has the
layers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

from zootools.architectures.schema import Layer
from zootools.errors import SpecError
from zootools.spec import CnnName
from zootools.spec.registered import GROUP, HOW_TO_REGISTER, REGISTERED, WORD, entry_points_of

Convolutions = Callable[[int], list[Layer]]
"""A function that returns convolutions for a number of image channels."""


@dataclass(frozen=True)
class CnnLayers:
    """The layers of a convolutional network."""

    convolutions: Convolutions
    """Returns the convolutions for a number of image channels."""
    hidden: tuple[int, ...] = (20,)
    """Widths of the linear layers between the convolutions and the logits, each with dropout."""


OWN: dict[str, CnnLayers] = {}
"""The architectures that are registered in this process, by name."""


def register_architecture(name: str, *, hidden: Sequence[int] = ()) -> Callable[[Convolutions], Convolutions]:
    """Return a decorator that registers a function as the architecture of a name, for specifications to use.

    The function takes the number of channels of the images and returns a new list of convolutions
    (`zootools.architectures.Layer` of the kind ``conv``); it must return equal layers at every call. Linear layers of
    the widths ``hidden``, each with activation and dropout, and a last one with a logit for each class follow.

    Args:
        name: what ``architecture.name`` of a specification is; lower-case letters, digits and underscores.
        hidden: widths of the linear layers between the convolutions and the logits.

    Raises SpecError if the name is not such a word, or that of a bundled architecture or of another function.
    """
    if not isinstance(name, str) or not WORD.fullmatch(name):
        raise SpecError(f"register_architecture: found the name {name!r:.80}, which does not match {WORD.pattern}")
    if name in ("mlp", *get_args(CnnName)):
        raise SpecError(f"register_architecture: {name} is a bundled architecture; choose another name")
    widths = tuple(hidden)
    if not all(type(width) is int and width > 0 for width in widths):
        raise SpecError(f"register_architecture: {name}: hidden: found {hidden!r:.80}; expected whole numbers from 1")

    def register(function: Convolutions) -> Convolutions:
        known = OWN.get(name)
        # A cell of a notebook, or a module that is reloaded, defines the same function again.
        if known is not None and _place(known.convolutions) != _place(function):
            raise SpecError(
                f"register_architecture: {name} is registered by {_place(known.convolutions)} and by "
                f"{_place(function)}; choose another name for one of them"
            )
        OWN[name] = CnnLayers(function, widths)
        REGISTERED.add(name)
        return function

    return register


def own_layers(name: str) -> CnnLayers:
    """Return a registered architecture; if none is in this process, import the entry point of an installed package.

    Raises SpecError if there is none, or several, or it fails, or its function does not return convolutions.
    """
    if name not in OWN:
        _import_entry_point(name)
    network = OWN[name]

    def convolutions(channels: int) -> list[Layer]:
        layers = network.convolutions(channels)
        fit = isinstance(layers, list) and layers and all(isinstance(layer, Layer) for layer in layers)
        if not fit or any(layer.kind != "conv" for layer in layers):
            raise SpecError(
                f"architecture {name}: {_place(network.convolutions)} returned {layers!r:.200}; expected a list of "
                "zootools.architectures.Layer of the kind conv"
            )
        return list(layers)

    return CnnLayers(convolutions, network.hidden)


def _import_entry_point(name: str) -> None:
    found = entry_points_of(name)
    if not found:
        raise SpecError(f"architecture.name: {name} is not registered; {HOW_TO_REGISTER}")
    if len(found) > 1:
        places = ", ".join(sorted(point.value for point in found))
        raise SpecError(f"architecture.name: {name} is offered by several installed packages ({places}); keep one")
    (point,) = found
    where = f"the entry point {name} = {point.value} (group {GROUP})"
    try:
        point.load()
    except Exception as error:  # whatever the user's own code raises
        reason = " ".join(str(error).split())[:300]
        raise SpecError(f"{where} cannot be imported ({type(error).__name__}: {reason})") from error
    if name not in OWN:
        raise SpecError(f"{where} registers no architecture {name}; decorate it with @register_architecture({name!r})")


def _place(function: Convolutions) -> str:
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', type(function).__name__)}"
