"""Whether a prediction can be believed."""
