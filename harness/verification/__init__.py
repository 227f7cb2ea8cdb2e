"""Orchestration: what ``harness.verify`` does, in the parent and where the weights live.

May import every room but audit and app.
"""
