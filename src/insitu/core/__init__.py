"""Floor 0: the words, the interfaces and the arithmetic that every other room speaks. Imports the standard library and
NumPy only."""
