"""What users run: checkpoints streamed through the real stack, every expert compared."""
