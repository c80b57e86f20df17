"""What the command line and Python do with a run: train, resume, evaluate and export it, plan one, audit its data."""
