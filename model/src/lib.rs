//! What a node's Service datapath should be, what it is, how they differ.
