"""Small changes of a reference: what a wrong answer without a name may have done.

`changes` lists them: a part left out or wrapped, an operator, a constant, a name or a function
exchanged for another of its kind, a loop one step shorter, an argument without effect, a result
in another form. `explain` finds those that give the learner's answers, and points at the place.
"""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from shipyard.checks import catalogue

# Functions and methods that are taken for one another.
KINDS = [
    ("sigmoid", "tanh", "relu"), ("sum", "mean"), ("max", "min"), ("amax", "amin"), ("sin", "cos"),
    ("floor", "ceil", "round", "int"), ("argmax", "argmin"), ("var", "std"), ("sqrt", "square"),
    ("zeros", "ones"), ("zeros_like", "ones_like"), ("any", "all"), ("stack", "cat"),
    ("cumsum", "cumprod"), ("log", "log2", "log10", "exp"), ("tril", "triu"), ("abs", "square"),
    ("softmax", "log_softmax"), ("minimum", "maximum"),
]  # fmt: skip
OPERATORS = {
    "+": "- *", "-": "+", "*": "/ +", "/": "* //", "//": "/ %", "%": "//", "**": "*", "<": "<= >",
    "<=": "< >=", ">": ">= <", ">=": "> <=", "==": "!=", "!=": "==", "and": "or", "or": "and",
}  # fmt: skip
SYMBOLS = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%",
    ast.Pow: "**", ast.MatMult: "@", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=",
    ast.Eq: "==", ast.NotEq: "!=",
}  # fmt: skip
WRAPPERS = ["-{}", "2 * {}", "{} / 2", "0 * {}", "1 - {}", "{} ** 2", "1 / {}", "{} ** 0.5",
            "{}.mT", "{}.abs()", "tanh({})", "sigmoid({})", "relu({})", "exp({})",
            "log({})"]  # fmt: skip
RESULTS = ["{}.sum()", "{}.mean()", "{}.flatten()", "{}.squeeze()", "{}.unsqueeze(0)",
           "{}.unsqueeze(-1)", "{}[0]", "{}[-1]", "{}.mT", "{}.tolist()", "{}.item()", "int({})",
           "{}.float()", "{}.flip(0)", "{}.flip(-1)", "list({})", "tuple({})"]  # fmt: skip
ATOMS = (ast.Name, ast.Call, ast.Attribute, ast.Subscript, ast.Constant, ast.Tuple, ast.List)


@dataclass(frozen=True)
class Change:
    """``new`` stands for ``old``, from ``start`` to ``end`` of the source, in the line ``line``.

    ``kind`` counts from 0, the likeliest.
    """

    kind: int
    start: int
    end: int
    old: str
    new: str
    line: str
    source: str

    def says(self) -> str:
        new = self.new.strip()
        if new == "pass":
            return f"without the line\n    {self.line}"
        if "\n" in new:
            return f"when the function begins with\n    {new.splitlines()[0]}"
        each = " each" if self.end - self.start > len(self.old.encode()) else ""
        where = f"\nin the line\n    {self.line}" if self.old != self.line else ""
        return f"with\n    {new}\nin place of{each}\n    {self.old}{where}"


def explain(
    references: dict[Callable, tuple[frozenset[str], ...]],
    fits: Callable[[Callable], bool],
    seconds: float,
) -> str | None:
    """In words, the one small change of a reference whose answers ``fits``; None without one.

    Args:
        references: forms of the right answer, each with its `kinds_of_names`. The first one that
            a change explains is spoken of.
        fits: whether a function answers every case as the learner's does.
        seconds: what is not tried by then stays untried.
    """
    stop = time.thread_time() + seconds
    for reference, kinds in references.items():
        found = []
        for change in changes(reference, kinds):
            if time.thread_time() > stop:
                return _said(found, complete=False) if found else None
            function = _built(reference, change.source)
            if function and fits(function):
                found.append(change)
        if found:
            return _said(found, complete=True)
    return None


def _said(found: list[Change], complete: bool) -> str | None:
    """What the changes have in common, in words: one place, or one line, or nothing.

    A change of a likelier kind stands for those that come to the same by another way. Without
    ``complete``, others may fit too.
    """
    kind = min(change.kind for change in found)
    likely = [change for change in found if change.kind == kind]
    start, end = min(c.start for c in likely), max(c.end for c in likely)
    around = [c for c in likely if (c.start, c.end) == (start, end)]
    if around:  # all the others lie inside this place
        surely = "what" if complete and len(likely) == len(found) else "for example what"
        return f"Your result is {surely} comes out {around[0].says()}"
    if len({change.line for change in found}) == 1:
        return f"Your result comes out with a small change of the line\n    {found[0].line}"
    return None


def kinds_of_names(function: Callable, call: Callable[[], object]) -> tuple[frozenset[str], ...]:
    """Groups of the names in ``function`` that hold like things when ``call`` calls it.

    Tensors are alike if their shapes are, other values if their types are.
    """
    held: dict[tuple, set[str]] = {}
    code = getattr(function, "__code__", None)

    def trace(frame, event, argument):
        if frame.f_code is not code:
            return None
        if event == "return":
            for name, value in frame.f_locals.items():
                kind = (type(value), tuple(value.shape) if isinstance(value, Tensor) else None)
                held.setdefault(kind, set()).add(name)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return tuple(frozenset(names) for names in held.values() if len(names) > 1)


@functools.cache
def changes(reference: Callable, kinds: tuple[frozenset[str], ...] = ()) -> tuple[Change, ...]:
    """Every small change of ``reference`` and of the functions of its module that it calls."""
    source = Source("\n\n".join(map(catalogue.source_of, _with_helpers(reference))))
    found: dict[str, Change] = {}
    alike: dict[tuple[int, str, str], dict[tuple[int, int], None]] = {}
    for kind, node, new in _likeliest_first(source, kinds):
        span = source.span(node)
        change = source.changed(kind, [span], new)
        found.setdefault(change.source, change)
        if isinstance(node, ast.expr):
            alike.setdefault((kind, change.old, new), {})[span] = None
    for (kind, _, new), spans in alike.items():
        if len(spans) > 1 and all(a[1] <= b[0] for a, b in itertools.pairwise(sorted(spans))):
            change = source.changed(kind, sorted(spans), new)
            found.setdefault(change.source, change)
    return tuple(found.values())


class Source:
    """A text of Python, its tree, and the text with parts of it replaced."""

    def __init__(self, text: str):
        self.tree = ast.parse(text)
        self.bytes = text.encode()  # the tree's column offsets count bytes
        lines = self.bytes.split(b"\n")
        self.starts = [0, *itertools.accumulate(len(line) + 1 for line in lines)]

    def span(self, node: ast.AST) -> tuple[int, int]:
        start = self.starts[node.lineno - 1] + node.col_offset
        return start, self.starts[node.end_lineno - 1] + node.end_col_offset

    def of(self, node: ast.AST) -> str:
        return self.bytes[slice(*self.span(node))].decode()

    def changed(self, kind: int, spans: list[tuple[int, int]], new: str) -> Change:
        """``new`` at each of ``spans``, which follow one another."""
        text, (start, end) = self.bytes, spans[0]
        code = new if new.isidentifier() or "\n" in new else f"({new})"
        for first, last in reversed(spans):
            text = text[:first] + code.encode() + text[last:]
        until = self.bytes.find(b"\n", start)
        line = self.bytes[self.bytes.rfind(b"\n", 0, start) + 1 : until if until > 0 else None]
        return Change(
            kind=kind,
            start=start,
            end=spans[-1][1],
            old=self.bytes[start:end].decode(),
            new=new,
            line=line.decode().strip(),
            source=text.decode(),
        )


def _likeliest_first(source: Source, kinds: tuple) -> Iterator[tuple[int, ast.AST, str]]:
    """(kind, node, new text): parts left out or exchanged, then other values, then wrappers."""
    nodes = [n for n in ast.walk(source.tree) if isinstance(n, ast.expr | ast.stmt)]
    in_loop = {n for loop in nodes if isinstance(loop, ast.While) for n in ast.walk(loop)}
    nodes = [n for n in nodes if n not in in_loop]  # a changed `while` may never end
    all_edits = (_exchanged, functools.partial(_other_values, kinds=kinds), _wrapped)
    for kind, edits in enumerate(all_edits):
        for node in nodes:
            for new in edits(node, source):
                yield kind, node, new
    for node in nodes:
        if isinstance(node, ast.FunctionDef):
            for new in _ignored_arguments(node, source):
                yield len(all_edits), node.body[0], new


def _exchanged(node: ast.AST, source: Source) -> Iterator[str]:
    """A part left out, an operator or a function exchanged, operands in the other order."""
    of = source.of
    match node:
        case (
            ast.BinOp(left=left, op=operator, right=right)
            | ast.Compare(left=left, ops=[operator], comparators=[right])
        ):
            symbol = SYMBOLS.get(type(operator), "")
            a, b = _operand(left, source), _operand(right, source)
            for other in OPERATORS.get(symbol, "").split():
                yield f"{a} {other} {b}"
            if isinstance(node, ast.BinOp):
                yield of(left)
                yield of(right)
                if symbol in ("-", "/", "//", "**", "%"):
                    yield f"{b} {symbol} {a}"
                if symbol == "@":
                    yield f"{a} @ {b}.mT"
                    yield f"{a}.mT @ {b}"
        case ast.UnaryOp(operand=operand):
            yield of(operand)
        case ast.BoolOp(values=values, op=operator):
            yield from map(of, values)
            words = (" and ", " or ")
            yield words[isinstance(operator, ast.And)].join(_operand(v, source) for v in values)
        case ast.IfExp(body=body, orelse=orelse):
            yield of(body)
            yield of(orelse)
        case ast.Call(func=function, args=arguments, keywords=keywords):
            if isinstance(function, ast.Attribute) and not _is_module(function.value):
                yield of(function.value)
            if arguments:
                yield of(arguments[0])
            for keyword in keywords:
                rest = [of(part) for part in (*arguments, *keywords) if part is not keyword]
                yield f"{of(function)}({', '.join(rest)})"
            name = of(function).rpartition(".")[2]
            rest = source.bytes[source.span(function)[1] : source.span(node)[1]].decode()
            for kind in KINDS:
                for other in kind if name in kind else ():
                    if other != name:
                        yield f"{of(function).removesuffix(name)}{other}{rest}"
        case ast.Assign() | ast.AugAssign() | ast.Expr():
            yield "pass"


def _other_values(node: ast.AST, source: Source, kinds: tuple) -> Iterator[str]:
    """Another constant, name or index; a loop of other steps; a result of another form."""
    of = source.of
    match node:
        case ast.Constant(value=bool(value)):
            yield str(not value)
        case ast.Constant(value=int() | float() as value):
            yield from {str(v) for v in (0, 1, 2, value + 1, value - 1, -value)} - {str(value)}
        case ast.Name(id=name, ctx=ast.Load()):
            yield from sorted(other for kind in kinds if name in kind for other in kind - {name})
        case ast.Call(func=ast.Name(id="range"), args=arguments):
            *first, last = map(of, arguments[:2])
            start = first[0] if first else "0"
            yield f"range({start}, {last} - 1)"
            yield f"range({start} + 1, {last})"
            yield f"range({start}, {last} + 1)"
            yield f"reversed({of(node)})"
        case ast.Call(func=ast.Name(id="reversed"), args=[argument]):
            yield of(argument)
        case ast.Return(value=ast.Tuple(elts=parts)):
            texts = [of(part) for part in parts]
            yield from (f"return {part}\n" for part in texts)
            for i, j in itertools.combinations(range(len(texts)), 2):
                swapped = [texts[{i: j, j: i}.get(k, k)] for k in range(len(texts))]
                yield f"return {', '.join(swapped)}\n"
        case ast.Return(value=ast.expr() as value):
            yield from (f"return {r.format(_operand(value, source))}\n" for r in RESULTS)


def _ignored_arguments(node: ast.FunctionDef, source: Source) -> Iterator[str]:
    """The first statement, after one that gives an argument another value."""
    first = source.of(node.body[0])
    given = [a.arg for a in node.args.args]
    defaults = dict(zip(given[::-1], map(source.of, node.args.defaults[::-1]), strict=False))
    for name in given:
        values = [defaults[name]] if name in defaults else []
        for value in (*values, f"0 * {name}", f"0 * {name} + 1"):
            yield f"{name} = {value}\n    {first}"


def _wrapped(node: ast.AST, source: Source) -> Iterator[str]:
    """A value and what a formula often does to one."""
    values = ast.BinOp | ast.Call | ast.Name | ast.Subscript | ast.Attribute
    if isinstance(node, values) and not isinstance(getattr(node, "ctx", None), ast.Store):
        yield from (wrapper.format(_operand(node, source)) for wrapper in WRAPPERS)


def _operand(node: ast.AST, source: Source) -> str:
    """The text of a part, in brackets where an operator beside it would tear it apart."""
    return source.of(node) if isinstance(node, ATOMS) else f"({source.of(node)})"


def _is_module(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in ("torch", "F", "math", "np", "nn")


def _with_helpers(reference: Callable) -> list[Callable]:
    """The functions of its own module that ``reference`` calls, and then itself."""
    found: dict[Callable, None] = {}
    for name in reference.__code__.co_names if inspect.isfunction(reference) else ():
        value = reference.__globals__.get(name)
        if inspect.isfunction(value) and value.__module__ == reference.__module__:
            found |= dict.fromkeys(_with_helpers(value)) if value is not reference else {}
    return [*found, reference]


@functools.lru_cache(maxsize=20_000)
def _built(reference: Callable, source: str) -> Callable | None:
    """``source`` as a function in the reference's module; None where it is no Python."""
    more = {name: getattr(torch, name) for kind in KINDS for name in kind if hasattr(torch, name)}
    try:
        return catalogue.built(reference, source, more | vars(builtins))
    except (SyntaxError, ValueError):
        return None
