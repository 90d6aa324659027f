"""How the bundled model is made: read the text, train the tokenizer, train the model."""
