"""A federation in one thread of time: the real coordinator and sites on a virtual clock, network and disk."""
