"""goldloop: spend human labels where they repair an LLM-labelled data set most."""

__version__ = "0.1.0"
