"""Decides, expert by expert and bit for bit, whether a MoE checkpoint really reached the device."""
