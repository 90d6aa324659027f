"""One file per tab. Each offers `TAB`, a `Tab` with a title and a `build(page)` that lays out its views."""
