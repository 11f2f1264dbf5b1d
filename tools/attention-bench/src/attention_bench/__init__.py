"""Times dilated-attention-pytorch beside other attention libraries, in one run and on one mask."""
