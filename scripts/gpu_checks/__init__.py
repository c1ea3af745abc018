"""What `gpu_check.py` runs: each module has ``lowered()`` and ``checks()``.

``lowered()`` yields names and calls that compile something for CUDA without a GPU, and raise where
that fails. ``checks()`` gives names and calls that need a GPU; each returns what JSON can hold, or
yields it piece by piece. A module whose kernel has parameters to choose has ``tune()``, too, which
measures them and keeps the fastest (`fjx.kernels.tuning`). Modules without these help the others.
"""
