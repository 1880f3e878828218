"""The commands `hmt-ds generate` and `hmt-ds chat`: ask a trained model."""
