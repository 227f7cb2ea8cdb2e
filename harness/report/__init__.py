"""What a run found, for people and machines: reports, renderings, merging, known issues.

May import compare and explain.
"""
