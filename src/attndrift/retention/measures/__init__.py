"""The retention measures known by name; each module registers one, and imports torch inside its functions."""
