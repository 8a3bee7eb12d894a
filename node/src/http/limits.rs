//! Every bound of the HTTP listeners, with its reason: how long, how many, how big. What a push may be is the cluster's
//! business and is not here.

use std::time::Duration;

/// A command or a query of a request is answered within this: longer than any failover, shorter than a client's own
/// patience.
pub(super) const DEADLINE: Duration = Duration::from_secs(5);

/// Connections of publishers at once, over all workers together. Each costs a descriptor and some kilobytes whoever it is
/// from, and a publisher needs few: requests on one follow each other.
const CONNECTIONS: usize = 4096;
/// Connections of operators at once: a few scrapers and people. On loopback nobody is asked who they are, so they must
/// not be able to take the descriptors that sessions need.
pub const OPERATOR_CONNECTIONS: usize = 64;
/// A TLS handshake must be done within this: two round trips over a bad line.
pub const TLS_DEADLINE: Duration = Duration::from_secs(3);
/// The head of a request must be there within this.
pub const HEAD_DEADLINE: Duration = Duration::from_secs(5);
/// A connection without a request is kept this long: the next of a row of requests comes at once, and who has none gives
/// the place free.
pub const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// A connection that was answered before its body was read stays this long, so that the answer is not lost to a reset.
pub const LAST_WORDS: Duration = Duration::from_secs(1);
/// Requests in progress get this long, in seconds, when the node leaves: most are answered in milliseconds, and waits for
/// a push's end are asked again elsewhere.
pub const LEAVE: u64 = 1;

/// A body must be there within this: the largest one over a slow line.
pub(super) const BODY_DEADLINE: Duration = Duration::from_secs(15);
/// Bytes of one bulk registration: ten thousand keys.
pub(super) const MAX_BULK: usize = 1024 * 1024;
/// Registrations of one request on their way at once: enough to fill log entries, too few to fill a shard's queue.
pub(super) const BULK_AT_ONCE: usize = 512;
/// Bytes of a request for a token: a name and a few words.
pub(super) const MAX_TOKEN_REQUEST: usize = 4 * 1024;
/// Bytes of a token's name: enough to say who uses it.
pub(super) const MAX_TOKEN_NAME: usize = 64;

/// Bytes of one part of a restore: one log entry, with room for what surrounds the pushes.
pub(super) const MAX_IMPORT: usize = 1024 * 1024;
/// Terminals in it: applying them takes some milliseconds.
pub(super) const MAX_IMPORT_TERMINALS: usize = 512;

/// Terminals on a page unless the request says otherwise: what one looks at.
pub(super) const PAGE: u32 = 100;
/// How long a request waits for a push's end unless it says otherwise: longer than waking a terminal takes.
pub(super) const DEFAULT_WAIT: Duration = Duration::from_secs(10);

/// Connections of publishers that one of `workers` may have. They take new connections in turn and pass over one that is
/// full, so that all places together can be used.
pub fn publishers_of_one(workers: usize) -> usize {
    // More workers than places: a worker that may take none would never serve.
    (CONNECTIONS / workers.max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_workers_do_not_mean_more_connections() {
        for workers in 1..=256 {
            let all = publishers_of_one(workers) * workers;
            assert!(all <= CONNECTIONS && all > CONNECTIONS - workers, "{all} with {workers} workers");
        }
    }
}
