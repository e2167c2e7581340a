"""Tables: text files, kinds of columns, and the encoding of columns as numbers."""
