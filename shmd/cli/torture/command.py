"""``shmd torture``."""
