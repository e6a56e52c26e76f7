"""The outcomes of this package, a file each."""
