"""Break the promises of the program on purpose; docs/proof.md describes what is proved and how."""
