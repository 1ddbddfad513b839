"""The coordinator's port: TLS, limits, and HTTP requests as values for the handlers."""
