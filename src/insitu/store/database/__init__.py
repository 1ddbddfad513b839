"""Where tables lie and how a transaction is done there: one file a dialect, the same two verbs in each."""
