"""``hasten retrain``: keep a model fresh without anyone watching."""
