"""The commands of sagewai-ops, one thin module each; `cli` loads them by name."""
