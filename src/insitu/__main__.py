"""``python -m insitu`` is ``insitu``."""

from insitu.cli.main import app

if __name__ == "__main__":
    app(prog_name="insitu")
