"""Break the promises of the program on purpose; docs/proof.md says what is proved and how."""
