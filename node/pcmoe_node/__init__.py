"""One participant of a consortium: its backbone, its router, its shard of the experts. Imports nothing heavy."""
