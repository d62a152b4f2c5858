"""Commands whose work spans several packages."""
