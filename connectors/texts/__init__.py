"""Texts in and labels out: CSV, JSONL, Parquet, Hugging Face data sets."""
