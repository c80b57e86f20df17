"""The output of a frozen prefix, computed once and kept on disk."""
