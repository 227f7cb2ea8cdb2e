"""Tests of harness/bisect/."""
