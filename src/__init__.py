"""ScoreRS: learn a quality score for remote-sensing image-text pairs, and curate data with it."""
