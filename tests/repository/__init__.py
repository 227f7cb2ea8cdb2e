"""Tests of the repository itself: pages, pipelines, images, scripts, the catalogue of scenarios."""
