"""Reading a document and continuing it: one cache that holds memory, open segment, and keys and values."""
