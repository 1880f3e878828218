"""Training and evaluation on many ranks: DeepSpeed engines around an HMT, for ZeRO and for pipelines."""
