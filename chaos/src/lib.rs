//! The chaos suite: what is done to a cluster (`scenario`, `plan`), what happened (`history`), sorted (`facts`), whether it
//! may have (`check`), all of it to look at (`report`), the least that still goes wrong (`shrink`), and many runs as one
//! number (`score`). Usable as a library alone. Never imported by the product.

pub mod check;
pub mod facts;
pub mod history;
pub mod plan;
pub mod report;
pub mod scenario;
pub mod score;
pub mod shrink;
pub mod waits;
