"""Tests of harness/checkpoint/."""
