"""Replace a home by a staged one in one step, under a journal."""
