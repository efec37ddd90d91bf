"""``shmd torture``; the command is in ``command``, so that its processes need not import it."""
