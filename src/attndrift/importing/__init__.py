"""Foreign records into the tables: reading files of other programs, their cells, and the words of their columns."""
