"""English text that every Python brings with it, as characters for a language model to learn.

The text needs no download: it is Python's own documentation, taken from the running
installation. Two places hold it:

- ``pydoc_data.topics``: the language reference, as ``help("topics")`` prints it;
- the doc strings of the standard modules in `MODULES`, read from their source, never imported.

The same Python version gives the same text. Another version gives a slightly different one, so
a result made from it names the version (`Corpus.source`).

Licence of the text: the PSF License Agreement, https://docs.python.org/3/license.html.
"""

from __future__ import annotations

import ast
import platform
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from shipyard.errors import ShipyardError

# Standard modules with long doc strings, that Python 3.11 and every later version have.
MODULES = (
    "argparse ast bdb calendar code codecs collections configparser contextlib copy csv ctypes "
    "difflib dis doctest email enum filecmp fileinput fractions ftplib functools heapq imaplib "
    "inspect ipaddress json linecache logging mimetypes numbers optparse os pathlib pkgutil "
    "platform poplib queue random runpy sched selectors shelve shutil smtplib socket socketserver "
    "ssl statistics string subprocess symtable tarfile tempfile textwrap threading timeit "
    "tokenize traceback typing unittest uuid warnings weakref wsgiref xmlrpc zipapp zipfile"
)

# Typographic characters that the reference uses here and there, in plain ASCII.
PLAIN = str.maketrans(
    {"“": '"', "”": '"', "‘": "'", "’": "'", "–": "-", "—": "-", "…": "...", "×": "x", "•": "*"}
)

HELD_OUT = 10  # one section in ten is kept for validation


@dataclass(frozen=True)
class Corpus:
    """Text to learn from, text to measure on, and where both come from."""

    train: str
    validation: str
    source: str


@cache
def load_corpus() -> Corpus:
    """Python's documentation as plain prose: about 0.8 million characters of ASCII.

    A section is one topic of the reference or one module. Each paragraph is kept once, without
    its indentation; grammar rules, tables, signatures and interactive examples are left out.
    Every tenth section is held out, whole, so that validation text was never seen in training.

    Raises:
        ShipyardError: this Python comes without its documentation or its sources.
    """
    seen: set[str] = set()
    sections = [_prose(text, seen) for text in (*_topics(), *_doc_strings())]
    sections = [section for section in sections if section]
    if sum(map(len, sections)) < 100_000:
        raise ShipyardError(
            "This Python comes without its documentation: pydoc_data.topics and the sources of "
            "the standard library hold next to no text. Use a full installation of Python "
            "(python.org, conda, or your system's package with the standard library)."
        )
    held_out = sections[HELD_OUT - 1 :: HELD_OUT]
    train = [section for i, section in enumerate(sections) if i % HELD_OUT != HELD_OUT - 1]
    source = f"documentation of Python {platform.python_version()} (pydoc_data, doc strings)"
    return Corpus("\n\n".join(train), "\n\n".join(held_out), source)


@dataclass(frozen=True)
class Vocabulary:
    """A number for each character: the place of the character in ``characters``."""

    characters: str

    @classmethod
    def of(cls, text: str) -> Vocabulary:
        """The vocabulary of the characters in ``text``, sorted."""
        return cls("".join(sorted(set(text))))

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> Tensor:
        """The number of each character: an int64 tensor of shape (len(text),).

        Raises:
            ValueError: a character is not in the vocabulary; the message names it.
        """
        number = {character: i for i, character in enumerate(self.characters)}
        unknown = sorted(set(text) - number.keys())
        if unknown:
            raise ValueError(
                f"{unknown[0]!r} is not in the vocabulary of {len(self)} characters "
                f"{self.characters!r}. Leave it out, or build the vocabulary from text that has it."
            )
        return torch.tensor([number[character] for character in text], dtype=torch.int64)

    def decode(self, tokens: Tensor) -> str:
        """The text whose `encode` gives ``tokens``, a tensor of shape (length,)."""
        return "".join(self.characters[i] for i in tokens.tolist())


def batches(
    tokens: Tensor, batch_size: int, length: int, steps: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """``steps`` random batches of windows, and the same windows one character later.

    Each batch is (inputs, targets), both of shape (batch_size, length), with
    targets[n, t] = the token that follows inputs[n, t]. ``generator`` draws where each window
    begins: the same seed gives the same batches.

    Raises:
        ValueError: ``tokens`` is too short for one window.
    """
    _check_length(tokens, length)
    offsets = torch.arange(length + 1)
    for _ in range(steps):
        starts = torch.randint(len(tokens) - length, (batch_size, 1), generator=generator)
        window = tokens[starts + offsets]  # (batch_size, length + 1)
        yield window[:, :-1], window[:, 1:]


def windows(tokens: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """All of ``tokens`` in order as (inputs, targets), both of shape (windows, length).

    The windows stand side by side and no target comes twice; a rest at the end that fills no
    window is left out.

    Raises:
        ValueError: ``tokens`` is too short for one window.
    """
    _check_length(tokens, length)
    count = (len(tokens) - 1) // length
    inputs, targets = tokens[: count * length], tokens[1 : count * length + 1]
    return inputs.view(count, length), targets.view(count, length)


def _check_length(tokens: Tensor, length: int) -> None:
    if length < 1 or len(tokens) < length + 1:
        raise ValueError(
            f"A window of length {length} and its last target need {length + 1} tokens, at least "
            f"2; there are {len(tokens)}."
        )


def _topics() -> Iterator[str]:
    """The text of each topic of the language reference, in alphabetical order of the topics."""
    try:
        from pydoc_data import topics
    except ImportError:
        return
    for name in sorted(topics.topics):
        yield topics.topics[name]


def _doc_strings() -> Iterator[str]:
    """For each of `MODULES`, the doc strings of the module, its classes and functions."""
    library = Path(sysconfig.get_path("stdlib"))
    for name in MODULES.split():
        files = [library / f"{name}.py", *sorted((library / name).glob("*.py"))]
        trees = [ast.parse(file.read_bytes()) for file in files if file.is_file()]
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        nodes = (node for tree in trees for node in ast.walk(tree) if isinstance(node, documented))
        yield "\n\n".join(ast.get_docstring(node) or "" for node in nodes)


# What marks a paragraph that is no prose: a grammar rule, a ruler or a table, a prompt, a
# definition, an assignment, or a gap between columns.
NOT_PROSE = re.compile(
    r"::=|[-=*+~^_#.]{4,}|>>>|\.\.\. |^def |^class |^@|^import | = |\w {3,}\w|\|"
)


def _prose(text: str, seen: set[str]) -> str:
    """The paragraphs of ``text`` that read as prose and are not in ``seen``, which grows."""
    text = text.translate(PLAIN).expandtabs()
    kept = []
    for paragraph in re.split(r"\n\s*\n", text):
        lines = [line.strip() for line in paragraph.splitlines() if line.strip()]
        flat = " ".join(lines)
        letters = sum(character.islower() or character == " " for character in flat)
        prose = (
            len(flat) >= 40
            and flat.isascii()
            and flat.isprintable()
            and letters >= 0.8 * len(flat)
            and not any(NOT_PROSE.search(line) for line in lines)
        )
        if prose and flat not in seen:
            seen.add(flat)
            kept.append("\n".join(lines))
    return "\n\n".join(kept)
