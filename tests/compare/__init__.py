"""Tests of harness/compare/."""
