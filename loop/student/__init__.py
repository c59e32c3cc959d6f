"""The small classifier: trained with several seeds, put to use, or frozen."""
