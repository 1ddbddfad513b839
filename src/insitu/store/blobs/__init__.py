"""``core.federation.Blobs``: bytes by their SHA-256, in a folder or a bucket."""
