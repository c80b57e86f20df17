"""The same path from Python: what the commands do, as functions."""
