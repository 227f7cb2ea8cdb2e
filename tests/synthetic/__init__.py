"""Tests of harness/synthetic/."""
