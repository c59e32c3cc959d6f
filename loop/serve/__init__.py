"""``goldloop serve``: webhooks, the ML backend, the page of live progress."""
