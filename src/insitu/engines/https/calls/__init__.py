"""The rules of a call: everyone in a cohort asked once."""
