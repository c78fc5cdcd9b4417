"""Files that are written whole and whose damage is found when they are read."""
