"""LLMs as annotators: in this process, on a server, or recorded."""
