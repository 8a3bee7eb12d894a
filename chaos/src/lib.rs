//! The chaos suite: what is done to a cluster (`scenario`, `plan`), what happened (`history`), sorted (`facts`), whether it
//! may have (`check`), all of it to look at (`report`), and the least that still goes wrong (`shrink`); and links that can be
//! made worse while they run (`link`). Usable as a library alone. Never imported by the product, but for its benches.

pub mod check;
pub mod draw;
pub mod facts;
pub mod history;
pub mod link;
pub mod plan;
pub mod report;
pub mod scenario;
pub mod shrink;
