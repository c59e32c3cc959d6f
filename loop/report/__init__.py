"""The campaign told: page, table, JSON and status, all drawn from one view."""
