"""Measuring flow maps and tilted samples: look-ahead accuracy, exactness, figures, reports."""
