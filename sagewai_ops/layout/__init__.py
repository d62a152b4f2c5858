"""Move the flat files of older Sagewai versions into the current layout."""
