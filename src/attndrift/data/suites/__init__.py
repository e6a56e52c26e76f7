"""The suites known by name; each module registers one."""
