"""Model families in Flax NNX, cut into granules, and the loaders of their weights.

`fjx.models.granules` holds the programs, `fjx.models.tensors` what a checkpoint is reduced to.
"""
