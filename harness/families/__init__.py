"""What the harness knows of each model family, and the reference views built on that.

May import base and checkpoint.
"""
