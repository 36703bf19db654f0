"""perdure's persistence worker: the one process that writes the database; and what both programs share."""
