"""Tests of harness/devices/."""
