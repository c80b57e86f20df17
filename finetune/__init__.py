"""Staged transfer learning for images."""
