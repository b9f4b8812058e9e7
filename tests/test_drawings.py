"""Drawings: every text has room, an empty description is refused, edges are where wires begin."""

import pytest

from shipyard import drawings

ALL = [getattr(drawings, name) for name in drawings.__all__ if name[0].islower()]


@pytest.mark.parametrize("draw", ALL)
def test_every_text_of_a_drawing_has_room_and_the_drawing_says_what_it_shows(draw):
    drawing = draw()
    drawing.require_room()
    assert len(drawing.alt.split()) > 15


@pytest.mark.parametrize("draw", ALL)
def test_no_two_texts_of_a_drawing_cover_each_other(draw):
    drawing = draw()
    renderer = drawing.figure.canvas.get_renderer()
    boxes = [t.get_window_extent(renderer) for t in drawing.axes.texts if t.get_text()]
    for place, box in enumerate(boxes):
        assert not [o for o in boxes[place + 1 :] if box.overlaps(o)]


def test_a_drawing_without_a_description_is_refused():
    with pytest.raises(ValueError, match="alt is empty"):
        drawings.Drawing(100, 100, "  ")


def test_a_text_over_the_edge_is_refused(capsys):
    drawing = drawings.Drawing(100, 60, "A word.")
    drawing.label(50, 30, "fits")
    drawing.show()
    assert capsys.readouterr().out == "A word.\n"
    drawing.label(90, 30, "too far right")
    with pytest.raises(ValueError, match="'too far right' runs over the edge"):
        drawing.show()


def test_shapes_return_the_places_where_wires_begin():
    drawing = drawings.Drawing(200, 100, "A box.")
    box = drawing.box(100, 50, "", width=60, height=40)
    assert (box.left, box.right, box.top, box.bottom) == ((70, 50), (130, 50), (100, 30), (100, 70))
    grid = drawing.tensor(100, 50, 2, 3, cell=10)
    assert (grid.width, grid.height) == (30, 20)
