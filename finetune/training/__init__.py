"""Phases to trained weights."""
