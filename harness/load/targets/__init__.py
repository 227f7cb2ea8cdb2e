"""Where a checkpoint can be loaded to: one file a target, found by the registry.

A target's class declares what it can do and holds all that is its own: the environment of a load,
how the stack is entered, the layouts it leaves. Nothing else asks which target it has.
"""
