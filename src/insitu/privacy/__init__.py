"""Stages that protect what an update says: clipping now; noise, accounting and secure aggregation later."""
