//! Bounds of the debugging flow, each with its reason.

/// For how long slices may be behind the state of Services and Pods. The controller has no period: it
/// is told of a change, waits for `--endpointslice-updates-batch-period` (default 0) and writes; what
/// fails is tried again after 1, 2, 4, 8 and 16 s (`defaultSyncBackOff`,
/// `pkg/controller/endpointslice/endpointslice_controller.go`). Five tries are 31 s; twice that is
/// more than a healthy one needs.
pub const LAG_MS: u64 = 60_000;

/// For how long a load balancer may be without an address: what makes it talks to machines or to a
/// cloud, which takes minutes.
pub const LOAD_BALANCER_MS: u64 = 300_000;

/// Without a word from the API server for this long, its objects are no answer any more: a watch says
/// something at least every 75 s.
pub const API_SILENT_MS: u64 = 120_000;

/// Objects named in one finding; the number counts all.
pub const SHOWN: usize = 5;

/// Groups of Pods that nearly match a selector.
pub const NEAREST: usize = 3;

/// Conditions kept of a Pod that is not ready.
pub const CONDITIONS: usize = 8;

/// Containers kept of a Pod that is not ready.
pub const CONTAINERS: usize = 8;

/// Ports kept of a Pod.
pub const PORTS: usize = 256;

/// Characters kept of a condition's message.
pub const MESSAGE: usize = 120;

/// Stamps kept of Pods that are gone: as many as a busy cluster deletes in ten minutes.
pub const GONE_PODS: usize = 20_000;
