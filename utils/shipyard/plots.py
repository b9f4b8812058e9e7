"""The one plot style of the series, and figures that more than one lesson draws."""

from __future__ import annotations

import base64
import io

import matplotlib.pyplot as plt
from cycler import cycler
from IPython.display import display
from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart under every common colour blindness.
# Source: M. Okabe and K. Ito, "Color Universal Design", 2008.
BLUE, ORANGE, GREEN, PINK, SKY, VERMILION, YELLOW, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#6B6B6B",
)  # fmt: skip
PALETTE = (BLUE, ORANGE, GREEN, VERMILION, PINK, SKY, GREY)


def use_style() -> None:
    """Set the series' plot style for every figure that follows."""
    plt.rcParams.update({"axes.prop_cycle": cycler(color=PALETTE)})


def show(figure: Figure, alt: str) -> None:
    """Show ``figure`` with ``alt`` as its alternative text, then close it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    plt.close(figure)
    png = base64.b64encode(buffer.getvalue()).decode()
    display({"image/png": png, "text/plain": alt}, metadata={"image/png": {"alt": alt}}, raw=True)
