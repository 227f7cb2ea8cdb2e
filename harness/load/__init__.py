"""One load through the real stack, in its own process: targets, stacks, engines, the ledger.

May import devices and families.
"""
