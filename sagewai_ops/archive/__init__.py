"""The snapshot container alone: frames, header, manifest, envelope; it knows no home."""
