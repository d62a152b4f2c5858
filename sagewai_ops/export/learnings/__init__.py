"""Copy learnings into tables on the server."""
