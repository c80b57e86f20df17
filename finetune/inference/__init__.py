"""Use of a trained model: prediction, evaluation and serving."""
