"""The heads of this package, a file each."""
