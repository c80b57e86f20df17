"""The data side: image files in, batches of tensors out."""
