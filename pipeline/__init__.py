"""Labels the emotions of people in large video corpora; README.md in this folder has the map."""
