"""Which upstream build broke a scenario, or mended it: found by trying builds.

Tries pairs of releases and builds of a day, or commits of a clone, each in an environment that
``ci/setup.py`` makes; a trial is one scenario, run as a user would. Imports the reports and what
makes verdicts of them, and nothing of the stack under test.
"""
