"""Formula images, on which the embedded weights were pretrained: drawn from keyed randomness alone."""
