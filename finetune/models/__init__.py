"""Batches to logits: plain PyTorch, without Lightning and without data."""
