"""The adaptation methods of this package, a file each."""
