"""Facts of the metrics that the package brings: one file a family. None imports torch, so that names and help are quick."""
