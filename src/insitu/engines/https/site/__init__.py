"""A site's half: it asks its coordinator for work, does it on its own data, and decides what it does and tells."""
