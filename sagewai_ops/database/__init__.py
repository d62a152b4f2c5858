"""The two database engines that a home can use."""
