"""How far a prediction's probability can be trusted."""
