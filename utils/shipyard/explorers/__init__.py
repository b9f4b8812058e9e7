"""Explorers: figures with sliders, one module a subject."""
