"""Matrix products with the same bits wherever in memory their factors begin."""

import os


def make_products_repeatable() -> None:
    """Ask MKL for it, unless the environment says otherwise.

    Without this the last bits of a product depend on where in memory its factors begin, and so a model's bits on its
    place in a stack. MKL reads the variable when it is first used, in this process and in those that it starts: what
    trains calls this when it is imported, so that builds and encoders are made under one setting.
    """
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
