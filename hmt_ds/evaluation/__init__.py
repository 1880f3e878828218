"""What a trained model can do: perplexity by segments read, generation."""
