"""The launchers known by name; each module registers one."""
