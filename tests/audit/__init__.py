"""Tests of harness/audit/."""
