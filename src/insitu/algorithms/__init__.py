"""One method a file; the file's name is the name used in configuration files."""
