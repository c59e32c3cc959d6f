"""What an operator does with a campaign: look after it, back it up, mend it, forget a person."""
