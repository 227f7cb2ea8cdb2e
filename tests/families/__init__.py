"""Tests of harness/families/."""
