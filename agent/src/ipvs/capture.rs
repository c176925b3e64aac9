//! What the kernel gave, undecoded: messages without their netlink headers.

/// IPVS and ipsets of one reading.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Captured {
    /// IPVS.
    pub servers: Capture,
    /// ipsets; empty where no rule refers to one.
    pub sets: Vec<SetCapture>,
}

/// All virtual servers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capture {
    /// In the kernel's order.
    pub servers: Vec<Server>,
}

/// One virtual server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Server {
    /// `IPVS_CMD_NEW_SERVICE`.
    pub service: Vec<u8>,
    /// `IPVS_CMD_NEW_DEST`, one for each real server.
    pub destinations: Vec<Vec<u8>>,
}

/// One ipset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetCapture {
    /// `IPSET_CMD_LIST`, as many as the kernel needed.
    pub messages: Vec<Vec<u8>>,
    /// Its elements were asked for.
    pub listed: bool,
}
