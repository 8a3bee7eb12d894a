//! Fail points where a task can wait: see `reveille_protocol::fail_point`. Nothing in a build that ships.

use std::io;

use openraft::RaftTypeConfig;
use openraft::type_config::TypeConfigExt;
use reveille_protocol::fail_point::{Point, delay, pass, try_pass};

async fn wait<C: RaftTypeConfig>(point: Point) {
    let longer = delay(point);
    if !longer.is_zero() {
        C::sleep(longer).await;
    }
}

/// A point where a step can wait, and cannot fail.
pub(crate) async fn at<C: RaftTypeConfig>(point: Point) {
    wait::<C>(point).await;
    pass(point);
}

/// A point where a step can wait and fail.
pub(crate) async fn try_at<C: RaftTypeConfig>(point: Point) -> io::Result<()> {
    wait::<C>(point).await;
    try_pass(point)
}
