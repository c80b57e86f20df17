"""What a trained model is used for after training."""
