"""The datasets known by name; each module registers its rows."""
