"""What users take away: the final model, its predictions, labels, the codebook."""
