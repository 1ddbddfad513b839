"""``core.federation.Ledger`` in SQL: who belongs to a federation, what was asked and told, and who leads it."""
