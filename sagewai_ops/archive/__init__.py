"""The snapshot container alone: frames, seek table, header, manifest, envelope; it knows no home."""
