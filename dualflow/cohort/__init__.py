"""The embedded cohort: template anatomy and regional uptake become a BIDS dataset with known truth."""
