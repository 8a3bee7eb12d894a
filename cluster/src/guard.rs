//! Panics. A task that ends by one leaves what it did undone for ever: a group whose proposer is gone takes nothing, one
//! whose timers are gone ends nothing, and the node looks well. So the node ends, says what panicked, and comes back on
//! what is durable. Knows nothing of what the tasks do.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use futures::FutureExt;
use openraft::type_config::TypeConfigExt;
use reveille_protocol::fail_point;

use crate::env::Env;
use crate::host::Host;

/// Begins a task of the cluster; `what` names it for an operator.
pub(crate) fn spawn<E: Env>(
    host: Arc<dyn Host>,
    what: &'static str,
    task: impl Future<Output = ()> + Send + 'static,
) {
    let _detached = E::Cfg::spawn(async move { run(&*host, what, task).await.unwrap_or(()) });
}

/// Does something, and has `failed` told why the node must end if it panics; `what` names it for an operator.
pub async fn watch<T>(what: &str, work: impl Future<Output = T>, failed: impl FnOnce(String)) -> Option<T> {
    let done = AssertUnwindSafe(work).catch_unwind().await;
    done.map_err(|panic| failed(told(what, panic))).ok()
}

/// Does something on a task that is not the cluster's: raft's.
pub(crate) async fn run<T>(host: &dyn Host, what: &str, work: impl Future<Output = T>) -> Option<T> {
    watch(what, work, |why| host.failed(why)).await
}

/// The same for what does not wait: on a task of a link's, of a session's.
pub(crate) fn within<T>(host: &dyn Host, what: &str, work: impl FnOnce() -> T) -> Option<T> {
    let done = catch_unwind(AssertUnwindSafe(work));
    done.map_err(|panic| host.failed(told(what, panic))).ok()
}

/// A step of raft's that is done on a task of which nobody would miss anything. An error stops the group, and so the node.
pub(crate) async fn caught<T>(what: &str, step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let done = AssertUnwindSafe(step).catch_unwind().await;
    done.unwrap_or_else(|panic| {
        let why = said(panic);
        tracing::error!(what, why, "panicked; the group stops here, and the node ends");
        Err(io::Error::other(format!("{what} panicked: {why}")))
    })
}

fn told(what: &str, panic: Box<dyn Any + Send>) -> String {
    let why = said(panic);
    tracing::error!(what, why, "a task panicked; the node ends");
    format!("{what} panicked: {why}; this is a defect: please report it with the log before this line")
}

/// What a panic said. The end of a node at a fail point is none, and goes on.
pub(crate) fn said(panic: Box<dyn Any + Send>) -> String {
    if fail_point::is_kill(&*panic) {
        resume_unwind(panic);
    }
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
}
