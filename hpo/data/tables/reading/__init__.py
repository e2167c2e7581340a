"""Reading of tables: text files, and the numbers, dates and kinds of columns."""
