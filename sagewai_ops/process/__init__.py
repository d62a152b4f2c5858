"""Signals, other processes and memory of the operating system."""
