"""Studies: what to run, running it so that nothing is lost, and collecting the tables."""
