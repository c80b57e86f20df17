"""Embeddings of images: extraction, storage, search, clustering and labelling."""
