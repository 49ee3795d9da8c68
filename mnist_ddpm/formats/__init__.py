"""Checkpoints on disk: the project's own, and those of other libraries."""
