"""Compare target rows with their source by value."""
