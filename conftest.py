"""Names the plugin, nothing else; an installed harness brings it by its entry point."""
