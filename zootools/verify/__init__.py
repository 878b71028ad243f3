"""Comparison of a whole zoo with what was written: `faults` finds what is wrong, `repair` removes it.

A verification reads every byte, and derives again everything that can be derived from other data, so a change is found
even if all hashes were computed anew. A verification that was interrupted does not hash a file twice: the files
that were found intact are noted in the user's cache, never in the zoo, until the verification is complete.
"""

from zootools.verify.fault import UNLISTED, Fault, is_ignored
from zootools.verify.files import file_faults
from zootools.verify.finished import card_fault, card_repository
from zootools.verify.repairing import repair
from zootools.verify.zoo import faults, place_faults

__all__ = [
    "UNLISTED",
    "Fault",
    "card_fault",
    "card_repository",
    "faults",
    "file_faults",
    "is_ignored",
    "place_faults",
    "repair",
]
