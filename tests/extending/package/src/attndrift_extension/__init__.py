"""One of each kind that attndrift takes from other packages."""
