"""Why they differ: causes, their evidence and next steps. Runs only when something differs.

May import compare and, of load, the ledger. A cause is declared in the file that finds it, so these
files come with the room.
"""

from harness.explain import load_failure, metadata, rules

__all__ = ["load_failure", "metadata", "rules"]
