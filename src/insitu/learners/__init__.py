"""Learners turn (variables, a batch) into a gradient, or (variables, data) into fitted variables."""
