"""What every room needs: errors, raw bits and their types, writing whole files, progress, secrets.

May import nothing of the harness.
"""
