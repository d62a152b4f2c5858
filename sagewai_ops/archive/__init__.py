"""The container of a snapshot: tar members, zstd frames, manifest, encryption. It knows no home."""
