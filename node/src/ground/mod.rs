//! What a node has of its machine: ports, threads for its parts, the wall clock; or with the feature `turmoil`, which only
//! tests have, turmoil's network and the one thread of its simulation. No rules, and nothing of what runs there.

#[cfg(not(feature = "turmoil"))]
mod real;
#[cfg(feature = "turmoil")]
mod simulated;

#[cfg(not(feature = "turmoil"))]
pub use self::real::{Actors, Calling, has_gone, listen, metrics, reset, wall};
#[cfg(feature = "turmoil")]
pub use self::simulated::{Actors, Calling, has_gone, listen, metrics, reset, wall};
pub use reveille_terminal::ground::{TcpListener, TcpStream};
