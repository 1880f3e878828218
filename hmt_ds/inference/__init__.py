"""Read and continue documents segment by segment, with a cache of memories, open segment, and its keys and values."""
