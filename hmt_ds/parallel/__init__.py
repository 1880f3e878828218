"""Training and evaluation on many ranks: DeepSpeed engines around an HMT model, for ZeRO and for pipelines."""
