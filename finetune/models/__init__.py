"""The model side, from batches to logits: plain PyTorch, without Lightning and without data."""
