"""Tests that load through the real stack."""
