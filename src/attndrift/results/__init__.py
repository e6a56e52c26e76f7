"""The tables of results: their schema, reading, writing and importing."""
