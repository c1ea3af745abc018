"""The colours of the pictures, for a light background."""

PAPER = "#fcfcfb"
INK = "#1f2933"
FAINT = "#5a6673"
FREE = "#e6eaee"
PARAMETERS = "#3b6fb0"
KV = "#e39a2d"
ACTIVATIONS = "#8a63b5"
TIME = "#3f9a72"
WARNING = "#c2504f"
"""What waits, was aborted or is wrong."""
MICROBATCHES = (PARAMETERS, KV, TIME, WARNING, ACTIVATIONS, "#4aa3b5")
"""By number, from the beginning again after the last."""
