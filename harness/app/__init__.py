"""The command line and the pytest plugin. Neither holds logic of its own.

May import everything.
"""
