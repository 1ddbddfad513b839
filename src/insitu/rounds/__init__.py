"""Floor 2: what a round is, on every engine. Imports core only."""
