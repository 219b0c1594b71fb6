"""What any Hopper (Mosaic GPU) kernel needs: the program's shape, memory, and matmuls that begin a sum."""
