"""The report's sections; each registers itself."""
