"""The colours of the pictures, for a light background."""

PAPER = "#fcfcfb"
INK = "#1f2933"
FAINT = "#5a6673"
FREE = "#e6eaee"
PARAMETERS = "#3b6fb0"
KV = "#e39a2d"
ACTIVATIONS = "#8a63b5"
TIME = "#3f9a72"
MICROBATCHES = ("#3b6fb0", "#e39a2d", "#3f9a72", "#c2504f", "#8a63b5", "#4aa3b5")
"""By number, from the beginning again after the last."""
