"""The backbones known by name; each module registers one."""
