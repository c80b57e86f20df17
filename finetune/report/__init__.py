"""HTML pages, charts and tables for people to read."""
