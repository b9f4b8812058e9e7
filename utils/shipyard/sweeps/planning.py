"""What to run: a grid of parameters becomes trials, each with a key.

A *trial* is one setting of the parameters: one run of the notebook. Its key is a hash of all that
decides the result; a trial that has passed under its key is not run again.
"""

from __future__ import annotations

import ast
import hashlib
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shipyard.authoring import known_parameters, read, to_text
from shipyard.authoring.files import topic_of
from shipyard.authoring.running import parse_parameters
from shipyard.errors import SweepError

# Variables that a lesson reads where no parameter is given: they belong to a trial's identity.
SETTINGS = ("PROFILE", "DEVICE", "SEED", "DATASET")
SEED = "SEED"  # the parameter over which results are averaged
OPENS, CLOSES = "[({", "])}"


@dataclass(frozen=True)
class Trial:
    """One setting of the parameters.

    ``texts`` are the values as typed and ``values`` what they mean, both by name; ``key`` is a
    hash of all that decides the result: notebook, parameters and settings.
    """

    texts: dict[str, str]
    values: dict[str, Any]
    key: str

    @property
    def label(self) -> str:
        """``LEARNING_RATE=0.1 SEED=0``"""
        return label_of(self.values)

    @property
    def stem(self) -> str:
        """The name of its files: readable, and different for different keys."""
        return re.sub(r"[^\w.=-]+", "_", self.label)[:80] + f"-{self.key[:8]}"


@dataclass(frozen=True)
class Sweep:
    """A notebook and a grid: ``axes`` has the values of each parameter, ``trials`` all settings.

    ``source`` is the notebook's text without outputs, ``digest`` a hash of its code,
    ``settings`` the profile, device, seed and dataset where they are not swept.
    """

    path: Path
    source: str
    digest: str
    axes: dict[str, list[Any]]
    settings: dict[str, str]
    trials: list[Trial]

    @property
    def lesson(self) -> str:
        """The notebook's topic, as in the name of its result file: "cifar10_training"."""
        return topic_of(self.path.stem)

    @property
    def folder_name(self) -> str:
        """``sweep-cifar10_training-1a2b3c4d``: the same for the same grid and settings."""
        asked = [self.path.stem, {k: list(map(repr, v)) for k, v in self.axes.items()}]
        return f"sweep-{self.lesson}-{_hash([*asked, self.settings])[:8]}"


def plan(
    path: Path, grid: Mapping[str, str], environment: Mapping[str, str] | None = None
) -> Sweep:
    """Read a grid such as {"LEARNING_RATE": "0.1,0.2", "SEED": "0,1,2"} and check every value.

    The last parameter varies fastest. Each value is read as the type that the notebook's
    default has: a number, true or false, None, text, or a list in brackets.

    Args:
        path: the notebook.
        grid: values by name, separated by commas.
        environment: variables for the kernels; those of `SETTINGS` are part of a trial's key.

    Raises:
        SweepError: no parameter, or a missing or repeated value.
        AuthoringError: unknown parameter or a wrong value for one.
    """
    notebook = read(path)
    if not grid:
        raise SweepError("A sweep needs at least one parameter, such as: -p LEARNING_RATE 0.1,0.2")
    texts = {name: split_values(name, text) for name, text in grid.items()}
    parse_parameters(notebook, {name: values[0] for name, values in texts.items()}, path.stem)
    axes = {
        name: [parse_parameters(notebook, {name: text}, path.stem)[name] for text in values]
        for name, values in texts.items()
    }
    for name, values in axes.items():
        value, count = Counter(map(repr, values)).most_common(1)[0]
        if count > 1:
            raise SweepError(f"{name} has the value {value} {count} times; give it once.")
    settings = _settings(notebook, environment or {}, leave_out=axes)
    digest = code_hash(notebook)
    trials = []
    for pairs in itertools.product(*(zip(texts[n], axes[n], strict=True) for n in axes)):
        values = {name: value for name, (_, value) in zip(axes, pairs, strict=True)}
        key = _hash({
            "code": digest, "settings": settings,
            "values": sorted((name, repr(value)) for name, value in values.items()),
        })  # fmt: skip
        typed = {name: text for name, (text, _) in zip(axes, pairs, strict=True)}
        trials.append(Trial(typed, values, key))
    return Sweep(path, _without_outputs(notebook), digest, axes, settings, trials)


def split_values(name: str, text: str) -> list[str]:
    """``"0.1,0.2"`` → ["0.1", "0.2"]; a comma inside brackets separates nothing."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in OPENS) - (letter in CLOSES)
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    parts = [part.strip() for part in parts]
    if "" in parts:
        raise SweepError(f"{name} has an empty value in {text!r}. Expected: -p {name} 1,2,3")
    return parts


def code_hash(notebook: Any) -> str:
    """SHA-256 of the code: a corrected sentence keeps old results, a changed line does not."""
    return _hash([cell.source for cell in notebook.cells if cell.cell_type == "code"])


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def label_of(values: Mapping[str, Any]) -> str:
    """``LEARNING_RATE=0.1 SEED=0``"""
    return " ".join(f"{name}={value}" for name, value in values.items())


def _settings(
    notebook: Any, environment: Mapping[str, str], leave_out: Mapping[str, Any]
) -> dict[str, str]:
    """Each setting that the notebook has and the sweep does not: what a trial will get."""
    settings = {}
    for name, parameter in known_parameters(notebook).items():
        if name in SETTINGS and name not in leave_out:
            asked = environment.get(name) or os.environ.get(name)
            # os.environ.get('PROFILE', 'fast'): the default counts where nothing was asked.
            constants = [
                node.value
                for node in ast.walk(ast.parse(parameter.default))
                if isinstance(node, ast.Constant) and node.value != name
            ]
            settings[name] = asked or str(constants[0] if constants else parameter.default)
    return settings


def _without_outputs(notebook: Any) -> str:
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.metadata.pop("widgets", None)
    return to_text(notebook)
