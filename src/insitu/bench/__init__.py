"""Floor 4: how fast insitu is, beside a loop written by hand and beside the machine's own rates."""
