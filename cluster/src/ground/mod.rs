//! What a production node has of its machine that a simulated machine has otherwise: TCP, and a thread for its log. The
//! system's, or with the feature `turmoil`, which only tests have, turmoil's. Knows neither frames nor TLS.
#![allow(
    clippy::disallowed_methods,
    reason = "under production only, on tokio and its clock; the exact simulation has neither TCP nor this log"
)]

#[cfg(not(feature = "turmoil"))]
mod real;
#[cfg(feature = "turmoil")]
mod simulated;

#[cfg(not(feature = "turmoil"))]
pub use self::real::{TcpListener, TcpStream};
#[cfg(not(feature = "turmoil"))]
pub(crate) use self::real::{connect, handle, open_log, prepare};
#[cfg(feature = "turmoil")]
pub use self::simulated::{TcpListener, TcpStream};
#[cfg(feature = "turmoil")]
pub(crate) use self::simulated::{connect, handle, open_log, prepare};
