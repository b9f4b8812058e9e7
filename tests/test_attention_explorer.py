"""The attention explorer: its numbers, its figure, and what it refuses."""

import pytest
import torch

from shipyard import models, text
from shipyard.explorers import attention as explorers

SENTENCE = "the end\nof it"


@pytest.fixture(scope="module")
def vocabulary():
    return text.Vocabulary.of("abcdefghi \nnoTt")


@pytest.fixture(scope="module")
def model(vocabulary):
    torch.manual_seed(0)
    return models.CharTransformer(len(vocabulary), width=16, heads=2, layers=3)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 3.0])
def test_the_next_characters_are_a_distribution_that_temperature_flattens(
    model, vocabulary, temperature
):
    got = explorers.next_character(model, vocabulary, SENTENCE, temperature)
    assert got.shape == (len(vocabulary),)
    torch.testing.assert_close(got.sum(), torch.tensor(1.0))
    cooler = explorers.next_character(model, vocabulary, SENTENCE, temperature / 2)
    assert cooler.max() > got.max()


def test_the_weights_are_those_of_the_chosen_head(model, vocabulary):
    maps = model.attention_maps(vocabulary.encode(SENTENCE).unsqueeze(0))
    got = explorers.head_weights(model, vocabulary, SENTENCE, layer=3, head=2)
    torch.testing.assert_close(got, maps[2, 0, 1])


@pytest.mark.parametrize(("layer", "head", "temperature"), [(1, 1, 1.0), (3, 2, 0.1)])
def test_the_figure_labels_every_character(model, vocabulary, layer, head, temperature):
    figure = explorers.attention_figure(model, vocabulary, SENTENCE, layer, head, temperature)
    heat, bars = figure.axes[:2]
    assert "".join(label.get_text() for label in heat.get_xticklabels()) == "the␣end⏎of␣it"
    assert heat.get_xlabel()
    assert bars.get_xlabel()


def test_the_text_names_what_the_last_character_looks_at(model, vocabulary):
    row = explorers.head_weights(model, vocabulary, SENTENCE, 1, 1)[-1]
    said = explorers.attention_text(model, vocabulary, SENTENCE)
    assert "The last character, 't'," in said
    assert f"weight {row.max():.2f}" in said


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"text": ""}, "1 to 40"),
        ({"text": "t" * 41}, "41 characters"),
        ({"text": "ß"}, "'ß' is not in the vocabulary"),
        ({"text": "the", "layer": 4}, "no head 1 in layer 4"),
        ({"text": "the", "head": 0}, "no head 0"),
        ({"text": "the", "temperature": 0.0}, "above 0"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_words(model, vocabulary, values, message):
    with pytest.raises(ValueError, match=message):
        explorers.attention_figure(model, vocabulary, **values)


def test_the_explorer_follows_its_controls_and_shows_a_mistake(model, vocabulary):
    explorer = explorers.attention_explorer(model, vocabulary, "the end")
    picture, readout = explorer.picture.value, explorer.readout.value
    explorer.controls["head"].value = 2
    assert explorer.picture.value != picture
    explorer.controls["text"].value = "a bed"
    assert explorer.readout.value != readout
    explorer.controls["text"].value = "ß"
    assert "not in the vocabulary" in explorer.error.value
    assert explorer.picture.layout.display == "none"
    explorer.controls["text"].value = "a hat"
    assert explorer.error.value == ""
    assert explorer.picture.layout.display == ""
