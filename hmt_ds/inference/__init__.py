"""Read and continue documents segment by segment, caching memories and the last segment's keys and values."""
