"""What users run: checkpoints streamed through the real stack, every expert compared.

In a checkout it is ``scenarios``; the wheel has it as ``harness.scenarios``. Imports inside are
relative for that reason.
"""
