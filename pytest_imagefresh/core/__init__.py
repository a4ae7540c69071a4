"""Pure decisions: no subprocess, files, clock, environment or engine. Same input, same answer."""
