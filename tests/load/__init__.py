"""Tests of harness/load/."""
