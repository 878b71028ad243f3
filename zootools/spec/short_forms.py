"""The short forms of a specification (`zootools.spec.json_schema` has them too).

A short form is written out before the specification is validated, so ids, spec.yaml and all bytes are those of the
long form.
"""

from typing import Any

from zootools.spec.images import TRAINING_IMAGES


def long_form(values: dict[str, Any]) -> dict[str, Any]:
    """Return the plain values of a specification with its short forms written out. The argument is not changed.

    - ``architecture: cnn_small`` is ``architecture: {name: cnn_small}``.
    - ``images: mnist`` is ``images: {name: mnist, train: 60000}``: all published training images.
    - ``init: normal``, and any other value of an axis of the grid, is a list of this value.
    - ``seeds: 10`` is ``seeds: {range: [1, 10]}``, and ``seeds: [1, 5]`` is ``seeds: {fixed: [1, 5]}``.
    """
    found = dict(values)
    if isinstance(name := found.get("architecture"), str):
        found["architecture"] = {"name": name}
    if isinstance(name := found.get("images"), str):
        train = {"train": TRAINING_IMAGES[name]} if name in TRAINING_IMAGES else {}
        found["images"] = {"name": name, **train}
    if isinstance(grid := found.get("grid"), dict):
        scalar = (str, int, float)
        found["grid"] = {axis: [value] if isinstance(value, scalar) else value for axis, value in grid.items()}
    match found.get("seeds"):
        case bool():
            pass
        case int(count) if count > 0:
            found["seeds"] = {"range": [1, count]}
        case list(seeds):
            found["seeds"] = {"fixed": seeds}
    return found
