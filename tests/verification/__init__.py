"""Tests of harness/verification/."""
