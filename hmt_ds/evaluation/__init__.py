"""What a trained model can do: held-out losses, generation."""
