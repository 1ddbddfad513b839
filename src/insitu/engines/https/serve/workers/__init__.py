"""Worker processes: each ends TLS and moves chunks for some of the connections, and asks the main process for the rest.

The main process accepts and gives accepted connections away (`Fleet`), and decides everything: a worker (`process`)
sends it the head of each request (`Front`), and does what it is told with the body (`Relayed`). Both speak over a pair
of sockets that no other process has (`Line`).
"""
