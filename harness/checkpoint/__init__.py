"""The truth: files, index, headers and ``config.json``, wherever a checkpoint is stored.

Reads without the stack under test. May import base.
"""
