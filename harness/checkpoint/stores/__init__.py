"""Where checkpoints lie: a directory, the hub's cache, an S3 or a GCS bucket.

A :class:`~harness.checkpoint.stores.location.Location` lists files and reads ranges of them;
nothing else of the harness knows where bytes come from. Stores are read by the ecosystem's own
clients, never by the streamer, so that the reference and the load under test take different roads.
"""
