"""Shipyard: from the mathematics of a neural network to a model that serves traffic.

Nothing is imported here, so that ``import shipyard`` costs milliseconds.
Import what you use: ``from shipyard import data, plots``.
"""

__version__ = "0.1.0"
