"""Things that receive events and return nothing: lines on a terminal, a progress bar, files."""
