"""A figure with sliders: each figure is a plain function of its parameters.

In the modules of this package the functions that end in ``_figure`` draw, the ones that end in
``_text`` say the same in words, and both work without a browser. The functions that end in
``_explorer`` join them to sliders.
"""

from __future__ import annotations

import contextlib
import html
from collections.abc import Callable, Sequence

import ipywidgets
from matplotlib.figure import Figure

from shipyard import plots


class Explorer(ipywidgets.VBox):
    """Controls beside a picture and a read-out, which follow each change of a control.

    Args:
        css_class: class of the root element, for style sheets, beside "shipyard-explorer". The
            parts have "shipyard-explorer-picture", "-readout" and "-error".
        controls: by name; a change of the value of any of them calls ``redraw``.
        redraw: reads the controls and returns (figure, text).
        panel: the widgets to the left of the picture, from top to bottom; all controls if None.

    A ``ValueError`` from ``redraw`` is for the reader to mend: it is shown in red in place of
    the picture and the read-out. Any other error is shown in red too, and then raised.
    """

    def __init__(
        self,
        css_class: str,
        controls: dict[str, ipywidgets.ValueWidget],
        redraw: Callable[[], tuple[Figure, str]],
        panel: Sequence[ipywidgets.Widget] | None = None,
    ):
        self.controls, self.redraw, self.held = controls, redraw, False
        self.picture = ipywidgets.Image(format="png").add_class("shipyard-explorer-picture")
        self.readout = ipywidgets.HTML().add_class("shipyard-explorer-readout")
        self.error = ipywidgets.HTML().add_class("shipyard-explorer-error")
        left = ipywidgets.VBox(panel or list(controls.values()))
        right = ipywidgets.VBox([self.picture, self.readout, self.error])
        layout = ipywidgets.Layout(flex_flow="row wrap", align_items="flex-start", grid_gap="16px")
        super().__init__([ipywidgets.Box([left, right], layout=layout)])
        self.add_class("shipyard-explorer").add_class(css_class)
        for control in controls.values():
            control.observe(lambda change: self.update(), names="value")
        self.update()

    @contextlib.contextmanager
    def hold(self):
        """Change several controls inside a ``with`` block, and draw once at its end."""
        self.held = True
        try:
            yield
        finally:
            self.held = False
        self.update()

    def update(self) -> None:
        """Draw and describe the present values of the controls."""
        if self.held:
            return
        self.held = True  # ``redraw`` may itself set a control's limits
        try:
            figure, text = self.redraw()
            picture = plots.png_bytes(figure)
        except Exception as error:
            # Nothing may stay that looks like the answer to the new values.
            self.picture.layout.display, self.readout.value = "none", ""
            self.error.value = _lines(str(error) or repr(error), "color: #B3261E; font-weight: 600")
            if not isinstance(error, ValueError):
                raise
        else:
            self.picture.layout.display, self.error.value = "", ""
            self.picture.value, self.readout.value = picture, _lines(text)
        finally:
            self.held = False


def _lines(text: str, style: str = "") -> str:
    return "".join(f'<div style="{style}">{html.escape(line)}</div>' for line in text.split("\n"))
