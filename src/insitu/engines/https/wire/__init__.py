"""What travels: trees cut into chunks by their digests, and manifests that say what they hold."""
