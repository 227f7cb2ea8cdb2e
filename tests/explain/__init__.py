"""Tests of harness/explain/."""
