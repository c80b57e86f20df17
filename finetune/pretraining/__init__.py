"""Images from formulas: what the embedded weights were pretrained on, drawn from keyed randomness alone."""
