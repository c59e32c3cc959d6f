"""A campaign: its file, its texts, its store."""
