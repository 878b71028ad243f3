"""Tests that extensions of zootools must pass, to inherit from in a test suite. They need pytest."""

import pytest

pytest.register_assert_rewrite("zootools.testing.importers")  # before it is imported: assertions show their values

from zootools.testing.importers import ImporterExample, ImporterTests  # noqa: E402 (see above)

__all__ = ["ImporterExample", "ImporterTests"]
