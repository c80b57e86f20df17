"""Command modules, one per command; a module is imported only when its command runs."""
