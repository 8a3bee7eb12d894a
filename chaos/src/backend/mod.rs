//! What a run happens on. One folder a backend; each takes a scenario and a seed and leaves a history. Judges nothing.

pub(crate) mod attach;
pub(crate) mod compose;
mod http;
mod live;
mod observe;
pub(crate) mod payload;
pub(crate) mod proc;
mod publish;
pub(crate) mod sim;
mod terminals;
mod whom;

/// A node that is refused is replaced after this, as by somebody who is called and looks, unless a fault does it before; and
/// at once when faults are taken back.
const OPERATOR_COMES: std::time::Duration = std::time::Duration::from_secs(20);

/// The point of coverage for a node that said that it ends, as it must by what happened to it at a fail point.
pub(crate) const ENDED: &str = "fail-point.node-ended";
