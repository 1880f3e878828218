"""DeepSpeed lives here: engines around the memory, and nothing of DeepSpeed outside."""
