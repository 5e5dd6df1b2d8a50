"""Storage: the database, and studies as lines for another one. The only place of SQL."""
