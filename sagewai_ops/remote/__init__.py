"""Remote places: snapshots in object stores and over SSH. It knows no home and no snapshot."""
