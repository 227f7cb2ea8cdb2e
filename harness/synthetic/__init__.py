"""Synthetic checkpoints in the layouts the models are published in.

Real weights are hundreds of gigabytes; what the loaders do to them depends on names, shapes and
layouts alone. This package writes those, small or at published size, with values made to be told
apart.
"""
