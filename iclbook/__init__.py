"""The code that the book *In-Context Learning, Proved and Measured* teaches and runs."""
