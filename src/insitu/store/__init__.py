"""What survives a crash: the runs, their events and metrics, and what each needs to go on.

``insitu.store.sqlite.SqliteStore`` keeps them in one SQLite file, which needs no server and can be queried.
"""
