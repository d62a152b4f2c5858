"""Run the program as `python -m sagewai_ops`."""

from sagewai_ops.cli.main import main

main()
