//! How desired and observed differ, now.
