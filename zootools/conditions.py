"""Conditions on metadata as text: ``test_accuracy > 0.5 and activation in ["relu", "gelu"]``.

The text is parsed with Python's grammar into a tree; only the nodes below are translated, and nothing is evaluated.
"""

import ast
from collections.abc import Callable
from functools import reduce
from itertools import pairwise
from operator import and_, eq, ge, gt, le, lt, ne, or_
from typing import Literal, NoReturn

import pyarrow as pa
import pyarrow.compute as pc

from zootools.arrow_types import is_number
from zootools.errors import SpecError, did_you_mean
from zootools.storage.tables import SPLITS, STATUSES

MAX_LENGTH = 1000
"""Characters of a condition."""
MAX_DEPTH = 20
"""Levels of ``not`` and parentheses inside each other."""
EXAMPLE = 'test_accuracy > 0.5 and activation in ["relu", "gelu"]'

Kind = Literal["number", "text", "bool"]
"""The types of columns and values that can be compared, each with its own."""

_COMPARISONS: dict[type[ast.cmpop], Callable[[pc.Expression, pc.Expression], pc.Expression]] = {
    ast.Eq: eq,
    ast.NotEq: ne,
    ast.Lt: lt,
    ast.LtE: le,
    ast.Gt: gt,
    ast.GtE: ge,
}
_WORDS = {"true": True, "false": False}
_CHOICES = {"split": SPLITS, "status": STATUSES}
"""The texts of columns that have no others in any zoo: one that is not among them is a mistake."""


def parse_condition(text: str, schema: pa.Schema) -> pc.Expression:
    """Return the Arrow expression of a condition on metadata columns, for `zootools.Zoo.where` or ``pa.Table.filter``.

    A condition compares columns with numbers, quoted texts, ``true`` or ``false``, or with other columns
    (``==  !=  <  <=  >  >=``, also chained: ``0.5 < test_accuracy < 0.9``), tests ``in [...]``, ``not in [...]``,
    ``is null`` or ``is not null``, and joins these with ``and``, ``or``, ``not`` and parentheses. A column of type bool
    is a condition by itself. No comparison holds for a value that is null.

    Args:
        text: the condition, at most `MAX_LENGTH` characters.
        schema: the columns and their types.

    Raises SpecError with the position of the part that is not a condition, or whose column or type does not fit.
    """
    if len(text) > MAX_LENGTH:
        raise SpecError(f"where: found {len(text):,} characters; expected at most {MAX_LENGTH:,}")
    line = text.replace("\n", " ").replace("\r", " ")
    bare = line.lstrip()
    try:
        tree = ast.parse(bare, mode="eval").body
    except SyntaxError as error:
        start = len(line) - len(bare) + max(error.offset or 1, 1)
        found = repr(line[start - 1 :][:40]) if line[start - 1 :].strip() else "nothing"
        raise SpecError(
            f"where: {text!r}, character {start}: found {found}; expected a condition such as {EXAMPLE} "
            "(equality is ==, texts are in quotes, conditions are joined by and, or, not)"
        ) from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise SpecError(f"where: {text!r:.80}: is not a condition such as {EXAMPLE} ({error})") from error
    return _Translation(text, bare, len(line) - len(bare), schema).condition(tree, 0)


class _Translation:
    """The translation of one text, which its messages quote."""

    def __init__(self, text: str, bare: str, indent: int, schema: pa.Schema) -> None:
        self.text, self.encoded, self.indent, self.schema = text, bare.encode(), indent, schema

    def refuse(self, node: ast.expr, reason: str) -> NoReturn:
        """Raise SpecError for a part of the text. The columns of `ast` count bytes of UTF-8."""
        start = len(self.encoded[: node.col_offset].decode()) + self.indent + 1
        found = self.encoded[node.col_offset : node.end_col_offset].decode()
        raise SpecError(f"where: {self.text!r}, character {start}: found {found!r:.80}; {reason}")

    def condition(self, node: ast.expr, depth: int) -> pc.Expression:
        if depth > MAX_DEPTH:
            self.refuse(node, f"expected at most {MAX_DEPTH} levels of parentheses and not")
        match node:
            case ast.BoolOp(op=op, values=parts):
                join = and_ if isinstance(op, ast.And) else or_
                return reduce(join, [self.condition(part, depth + 1) for part in parts])
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return ~self.condition(operand, depth + 1)
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                pairs = zip(pairwise([left, *comparators]), ops, strict=True)
                return reduce(and_, [self.comparison(a, op, b) for (a, b), op in pairs])
            case ast.Name():
                expression, kind = self.term(node)
                if kind != "bool" or node.id in _WORDS:
                    self.refuse(node, "expected a comparison, or a column of type bool")
                return expression
            case ast.BinOp(op=ast.BitAnd() | ast.BitOr()) | ast.UnaryOp(op=ast.Invert()):
                self.refuse(node, "conditions are joined by and, or, not")
        self.refuse(node, f"expected a condition such as {EXAMPLE}")

    def comparison(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> pc.Expression:
        match op:
            case ast.Is() | ast.IsNot():
                is_null = self.column(left)[0].is_null()
                if not (isinstance(right, ast.Name) and right.id == "null"):
                    self.refuse(right, "expected null after is")
                return is_null if isinstance(op, ast.Is) else ~is_null
            case ast.In() | ast.NotIn():
                column = self.column(left)
                if not (isinstance(right, ast.List | ast.Tuple) and right.elts):
                    self.refuse(right, "expected a list of values after in, such as [1, 2]")
                found = reduce(or_, [self.compared(left, column, eq, item) for item in right.elts])
                return found if isinstance(op, ast.In) else ~found
        if not any(isinstance(side, ast.Name) and side.id not in _WORDS for side in (left, right)):
            self.refuse(left, f"expected a column on one side{self.columns('')}")
        return self.compared(left, self.term(left), _COMPARISONS[type(op)], right)

    def compared(
        self,
        left: ast.expr,
        term: tuple[pc.Expression, Kind],
        compare: Callable[[pc.Expression, pc.Expression], pc.Expression],
        right: ast.expr,
    ) -> pc.Expression:
        """Compare a term with another of the same kind."""
        (one, kind), (two, other) = term, self.term(right)
        if kind != other:
            self.refuse(right, f"it is of type {other}, but {ast.unparse(left)} of type {kind}")
        if kind == "bool" and compare not in (eq, ne):
            self.refuse(right, "values of type bool are compared by == and != only")
        for sides in ((left, right), (right, left)):
            match sides:
                case ast.Name(id=name), ast.Constant(value=str(text)) if text not in _CHOICES.get(name, (text,)):
                    self.refuse(sides[1], f"expected a {name}{did_you_mean(text, _CHOICES[name])}")
        return compare(one, two)

    def column(self, node: ast.expr) -> tuple[pc.Expression, Kind]:
        if not isinstance(node, ast.Name) or node.id in _WORDS:
            self.refuse(node, f"expected a column{self.columns('')}")
        return self.term(node)

    def term(self, node: ast.expr) -> tuple[pc.Expression, Kind]:
        """Return a column or a value, and its kind."""
        match node:
            case ast.Name(id=word) if word in _WORDS and word not in self.schema.names:
                return pc.scalar(_WORDS[word]), "bool"
            case ast.Name(id=name):
                if name not in self.schema.names:
                    self.refuse(node, f"expected a column, or a text in quotes{self.columns(name)}")
                kind = _kind(self.schema.field(name).type)
                if kind is None:
                    self.refuse(node, f"values of type {self.schema.field(name).type} cannot be compared")
                return pc.field(name), kind
            case ast.Constant(value=bool(value)):
                return pc.scalar(value), "bool"
            case ast.Constant(value=str(value)):
                return pc.scalar(value), "text"
            case ast.Constant(value=int(number) | float(number)) if abs(number) < 2**63 or isinstance(number, float):
                return pc.scalar(number), "number"
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(number) | float(number))) if (
                not isinstance(number, bool) and abs(number) < 2**63
            ):
                return pc.scalar(-number), "number"
        self.refuse(node, "expected a column, a number below 2**63, a text in quotes, true or false")

    def columns(self, word: str) -> str:
        return did_you_mean(word, [field.name for field in self.schema if _kind(field.type) is not None])


def _kind(kind: pa.DataType) -> Kind | None:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "text"
    if pa.types.is_boolean(kind):
        return "bool"
    return "number" if is_number(kind) else None
