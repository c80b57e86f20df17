"""Export a trained model to the formats that other tools open."""
