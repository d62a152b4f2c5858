"""Check every value of the source against the target before anything is sent."""
