"""Why they differ: causes, their evidence and next steps. Runs only when something differs.

May import compare and, of load, the ledger.
"""
