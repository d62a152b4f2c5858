"""Master keys: where they are, what they open, re-encryption, escrow."""
