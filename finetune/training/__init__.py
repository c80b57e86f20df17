"""Train a schedule of phases."""
