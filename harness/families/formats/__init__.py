"""Quantised releases: one file a format, found by its ``FORMATS``.

A format says how ``config.json`` announces it, which tensors stand for a matrix and what they mean,
decoded in numpy from its publisher's specification, and what upstream makes of it on a device. The
reader, the comparison, the account of tensors and the synthetic writer ask here. No code is shared
with vLLM, tpu-inference, compressed-tensors or any other writer or loader.
"""
