"""Tests of harness/app/."""
