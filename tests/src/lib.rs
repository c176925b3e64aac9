//! Whatever needs more than one crate, a kernel, or a cluster; and the laboratory.
