"""Tensors on a mesh, shard by shard: inverses of upstream's packings, digests in place.

May import base, checkpoint and families.
"""
