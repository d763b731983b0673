"""The `reid_cell` space: DARTS cells with a part-aware operation (Auto-ReID, arXiv 1903.09776)."""
