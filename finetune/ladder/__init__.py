"""Strategies compared on one data set, with a recommendation."""
