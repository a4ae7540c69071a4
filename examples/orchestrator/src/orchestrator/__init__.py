"""A small job runner behind HTTP: one process, the standard library only."""
