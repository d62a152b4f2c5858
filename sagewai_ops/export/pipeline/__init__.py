"""Send batches of rows to the server and compare them, in processes."""
