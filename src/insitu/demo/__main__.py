"""``python -m insitu.demo``."""

from insitu.demo.show import main

main()
