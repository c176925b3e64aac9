//! What the API asks of this node, as a table.
