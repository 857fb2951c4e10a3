"""HTML pages of a study: report, quality control and conversion."""
