f = slice
