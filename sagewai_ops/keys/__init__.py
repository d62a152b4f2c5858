"""The master key: where it may stand, what it opens, and every place that holds ciphertext."""
