"""Where a Sagewai home keeps what, and what its documents say."""
