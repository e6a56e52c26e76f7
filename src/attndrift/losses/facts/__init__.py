"""The preservation losses of this package, a file each."""
