"""The explorer of attention: who looks at whom in a typed sentence, and what comes next."""

from __future__ import annotations

import ipywidgets
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from shipyard import plots
from shipyard.explorers.base import Explorer

LONGEST = 40  # characters that a heat map can label readably
SHOWN = 8  # most likely next characters in the bar chart
VISIBLE = {" ": "␣", "\n": "⏎"}


def encode(vocabulary, text: str) -> Tensor:
    """The tokens of ``text`` as a batch of one: (1, time).

    Raises:
        ValueError: the text is empty, too long, or has a character that the model never saw.
    """
    if not 1 <= len(text) <= LONGEST:
        raise ValueError(
            f"The text has {len(text)} characters; type from 1 to {LONGEST}, so that the heat map "
            "stays readable."
        )
    return vocabulary.encode(text).unsqueeze(0)


@torch.no_grad()
def next_character(model: nn.Module, vocabulary, text: str, temperature: float = 1.0) -> Tensor:
    """softmax(logits / temperature) for the character after ``text``: (vocabulary).

    Raises:
        ValueError: ``temperature`` is not above zero, or the text does not fit `encode`.
    """
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0.")
    tokens = encode(vocabulary, text).to(next(model.parameters()).device)
    return (model(tokens)[0, -1] / temperature).softmax(-1).cpu()


@torch.no_grad()
def head_weights(model: nn.Module, vocabulary, text: str, layer: int, head: int) -> Tensor:
    """The attention weights of one head while it reads ``text``: (time, time).

    Raises:
        ValueError: there is no such layer or head, or the text does not fit `encode`.
    """
    maps = model.attention_maps(encode(vocabulary, text).to(next(model.parameters()).device))
    layers, _, heads = maps.shape[:3]
    if not (1 <= layer <= layers and 1 <= head <= heads):
        raise ValueError(
            f"There is no head {head} in layer {layer}; the model has {layers} layers of {heads} "
            "heads, counted from 1."
        )
    return maps[layer - 1, 0, head - 1].cpu()


def attention_figure(
    model: nn.Module, vocabulary, text: str, layer: int = 1, head: int = 1, temperature: float = 1.0
) -> Figure:
    """A heat map of one head over ``text``, and the most likely characters to follow it.

    Raises:
        ValueError: as `head_weights` and `next_character`.
    """
    weights = head_weights(model, vocabulary, text, layer, head)
    likely = next_character(model, vocabulary, text, temperature).sort(descending=True)
    with plots.style():
        figure = Figure(figsize=(9, 5), layout="constrained")
        heat, bars = figure.subplots(1, 2, width_ratios=(2.4, 1))
        picture = heat.imshow(weights.numpy(), cmap="Blues", vmin=0, vmax=1)
        figure.colorbar(picture, ax=heat, label="weight", shrink=0.8)
        labels = [VISIBLE.get(character, character) for character in text]
        heat.set_xticks(range(len(text)), labels, fontsize=9, family="monospace")
        heat.set_yticks(range(len(text)), labels, fontsize=9, family="monospace")
        heat.grid(False)
        heat.set(
            title=f"layer {layer}, head {head}",
            xlabel="character that is looked at",
            ylabel="character that looks",
        )
        count = min(SHOWN, len(likely.values))
        names = [vocabulary.characters[i] for i in likely.indices[:count].tolist()]
        places = range(count)
        bars.barh(places, likely.values[:count].tolist(), color=plots.BLUE)
        names = [VISIBLE.get(name, name) for name in names]
        bars.set_yticks(places, names, family="monospace")
        bars.invert_yaxis()
        bars.grid(axis="y", visible=False)
        bars.set(
            title=f"next, temperature {temperature:g}",
            xlabel="probability",
            ylabel="character",
            xlim=(0, 1),
        )
    return figure


def attention_text(
    model: nn.Module, vocabulary, text: str, layer: int = 1, head: int = 1, temperature: float = 1.0
) -> str:
    """The same in words, for the last character of ``text``.

    Raises:
        ValueError: as `attention_figure`.
    """
    row = head_weights(model, vocabulary, text, layer, head)[-1]
    probabilities = next_character(model, vocabulary, text, temperature)
    place, back = int(row.argmax()), len(text) - 1 - int(row.argmax())
    where = "itself" if back == 0 else f"{text[place]!r}, {back} back"
    follows = vocabulary.characters[int(probabilities.argmax())]
    return (
        f"The last character, {text[-1]!r}, looks most at {where}: weight {row[place]:.2f}.\n"
        f"Most likely next: {follows!r}, probability {probabilities.max():.2f}."
    )


def attention_explorer(model: nn.Module, vocabulary, text: str) -> Explorer:
    """Type a text, choose layer and head, turn the temperature, and see who looks at whom."""
    maps = model.attention_maps(encode(vocabulary, text).to(next(model.parameters()).device))
    layers, _, heads = maps.shape[:3]
    label = {"style": {"description_width": "90px"}}
    controls = {
        "text": ipywidgets.Text(value=text, description="text", continuous_update=False, **label),
        "layer": ipywidgets.IntSlider(value=1, min=1, max=layers, description="layer", **label),
        "head": ipywidgets.IntSlider(value=1, min=1, max=heads, description="head", **label),
        "temperature": ipywidgets.FloatSlider(
            value=1.0, min=0.1, max=3.0, step=0.1, description="temperature", **label
        ),
    }

    def redraw() -> tuple[Figure, str]:
        values = {name: control.value for name, control in controls.items()}
        return (
            attention_figure(model, vocabulary, **values),
            attention_text(model, vocabulary, **values),
        )

    return Explorer("shipyard-attention-explorer", controls, redraw)
