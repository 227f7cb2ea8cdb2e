"""Whether devices hold the reference: differences, equality, judges of bits and of values.

May import checkpoint, families and devices; knows nothing of how the load went.
"""
