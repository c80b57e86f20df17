"""Activation cache: outputs of the frozen prefix, computed once and stored on disk."""
