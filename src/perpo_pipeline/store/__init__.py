"""Artifacts on disk: how they are written, read, described and traced."""
