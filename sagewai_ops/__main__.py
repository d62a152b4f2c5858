"""Run the program as `python -m sagewai_ops`."""

from sagewai_ops.cli import main

main()
