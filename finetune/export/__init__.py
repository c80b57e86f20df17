"""A trained model in the form other tools open."""
